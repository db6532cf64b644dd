//! What the store in memory can lose.

use std::time::Duration;

use bytes::Bytes;

use super::HeapStore;
use crate::{LogEntry, MetadataStore as _, StoreError};

const LONG: Duration = Duration::from_secs(600);

fn entries(sequences: std::ops::Range<u64>) -> Vec<LogEntry> {
    let entry = |sequence| LogEntry {
        sequence,
        bytes: Bytes::new(),
    };
    sequences.map(entry).collect()
}

#[tokio::test(start_paused = true)]
async fn a_renewal_tells_that_the_end_of_a_log_was_lost() {
    let store = HeapStore::new();
    let kept = async || {
        let renewed = store.renew("n", Bytes::new(), "l", LONG).await;
        renewed.expect("renewed").log_kept
    };
    store
        .append("l", &entries(1..6), true, LONG)
        .await
        .expect("appended");
    assert!(kept().await);
    store.cut_log("l", 5);
    assert!(kept().await, "nothing was lost");
    store.cut_log("l", 3);
    assert!(!kept().await);
    let lost = store.append("l", &entries(6..7), false, LONG).await;
    assert!(matches!(lost, Err(StoreError::LogLost { .. })), "{lost:?}");
    let again = store.append("l", &entries(4..7), false, LONG).await;
    assert_eq!(again, Ok(()));
    assert!(kept().await);
    store.cut_log("none", 1);
}
