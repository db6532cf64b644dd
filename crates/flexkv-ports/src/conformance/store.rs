//! The suite for [`MetadataStore`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{sleep, timeout};

use super::PATIENCE;
use crate::{LogCursor, LogEntry, LogRead, MetadataStore, Renewal, StoreError};

/// Outlasts every case.
const LONG: Duration = Duration::from_secs(600);
/// Over soon.
const SHORT: Duration = Duration::from_millis(200);
/// No waiting.
const NOW: Duration = Duration::ZERO;

/// A store and a way to empty it behind its users' backs.
pub struct StoreUnderTest {
    /// The store; nobody else uses it.
    pub store: Arc<dyn MetadataStore>,
    /// Forgets everything in it, as after a restart without data.
    pub flush: Box<dyn Fn() -> BoxFuture<'static, ()>>,
}

/// Checks a store. `make` must give an empty one each time.
pub async fn store(make: impl AsyncFn() -> StoreUnderTest) {
    tells_whether_a_lease_was_kept(&*make().await.store).await;
    lists_members_with_their_last_record(&*make().await.store).await;
    forgets_who_leaves(&*make().await.store).await;
    expires_what_is_not_renewed(&*make().await.store).await;
    keeps_what_is_renewed(&*make().await.store).await;
    refuses_to_append_to_a_missing_log(&*make().await.store).await;
    reads_after_the_cursor_up_to_the_limit(&*make().await.store).await;
    appends_an_entry_once(&*make().await.store).await;
    notices_that_the_end_of_a_log_is_missing(&*make().await.store).await;
    keeps_bytes_as_they_are(&*make().await.store).await;
    leaves_out_logs_without_news(&*make().await.store).await;
    wakes_a_waiting_reader(&*make().await.store).await;
    ends_a_wait_without_news(&*make().await.store).await;
    retires_a_log_in_spite_of_use(&*make().await.store).await;
    tells_that_everything_was_lost(make().await).await;
}

async fn tells_whether_a_lease_was_kept(store: &dyn MetadataStore) {
    assert_eq!(
        renew(store, "a", LONG).await,
        renewal(false, false),
        "first"
    );
    assert_eq!(
        renew(store, "a", LONG).await,
        renewal(true, false),
        "second"
    );
    append(store, "a-log", 1..2).await;
    assert_eq!(
        renew(store, "a", LONG).await,
        renewal(true, true),
        "with log"
    );
    assert_eq!(
        renew(store, "b", LONG).await,
        renewal(false, false),
        "other"
    );
}

async fn lists_members_with_their_last_record(store: &dyn MetadataStore) {
    assert_eq!(members(store).await, [], "an empty store");
    for (name, record) in [("a", "1"), ("b", "2"), ("a", "3")] {
        let log = format!("{name}-log");
        let record = Bytes::from_static(record.as_bytes());
        let renewed = store.renew(name, record, &log, LONG).await;
        renewed.expect("renew");
    }
    assert_eq!(
        members(store).await,
        [("a".into(), "3".into()), ("b".into(), "2".into())]
    );
}

async fn forgets_who_leaves(store: &dyn MetadataStore) {
    for name in ["a", "b"] {
        renew(store, name, LONG).await;
        append(store, &format!("{name}-log"), 1..3).await;
    }
    store.leave("a", "a-log").await.expect("leave");
    store.leave("nobody", "no-log").await.expect("leave twice");
    assert_eq!(names(store).await, ["b"]);
    assert_eq!(sequences(store, "a-log", 0).await, [], "its log is gone");
    assert_eq!(sequences(store, "b-log", 0).await, [1, 2]);
    assert_eq!(renew(store, "a", LONG).await, renewal(false, false));
}

async fn expires_what_is_not_renewed(store: &dyn MetadataStore) {
    renew(store, "stays", LONG).await;
    append(store, "stays-log", 1..2).await;
    renew(store, "goes", SHORT).await;
    let entries = entries(1..2);
    let created = store.append("goes-log", &entries, true, SHORT).await;
    created.expect("append");
    wait_until_gone(store, "goes-log").await;
    let waiting = async {
        while names(store).await != ["stays"] {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the lease expires");
    assert_eq!(sequences(store, "stays-log", 0).await, [1]);
    assert_eq!(renew(store, "goes", LONG).await, renewal(false, false));
}

async fn keeps_what_is_renewed(store: &dyn MetadataStore) {
    renew(store, "a", SHORT).await;
    let created = store.append("a-log", &entries(1..2), true, LONG).await;
    created.expect("append");
    renew(store, "a", LONG).await;
    sleep(3 * SHORT).await;
    assert_eq!(names(store).await, ["a"]);
    assert_eq!(renew(store, "a", LONG).await, renewal(true, true));
    renew(store, "a", SHORT).await;
    wait_until_gone(store, "a-log").await;
}

async fn refuses_to_append_to_a_missing_log(store: &dyn MetadataStore) {
    assert_lost(store, "a", 1).await;
    append(store, "other", 1..2).await;
    assert_lost(store, "a", 1).await;
    append(store, "a", 1..2).await;
    let more = store.append("a", &entries(2..3), false, LONG).await;
    more.expect("the log exists");
    assert_eq!(sequences(store, "a", 0).await, [1, 2]);
}

async fn reads_after_the_cursor_up_to_the_limit(store: &dyn MetadataStore) {
    append(store, "a", 1..6).await;
    let read = read(store, &[("a", 0)], 100, NOW).await;
    let expected = LogRead {
        log: "a".into(),
        entries: entries(1..6),
    };
    assert_eq!(read, [expected]);
    assert_eq!(sequences(store, "a", 3).await, [4, 5]);
    assert_eq!(sequences(store, "a", 5).await, []);
    assert_eq!(sequences(store, "a", 99).await, []);
    let read = self::read(store, &[("a", 1)], 2, NOW).await;
    assert_eq!(read[0].entries, entries(2..4), "at most 2 entries");
}

async fn notices_that_the_end_of_a_log_is_missing(store: &dyn MetadataStore) {
    append(store, "a", 5..8).await;
    assert_lost(store, "a", 9).await;
    assert_eq!(
        sequences(store, "a", 0).await,
        [5, 6, 7],
        "nothing was done"
    );
    append(store, "a", 8..10).await;
    assert_eq!(sequences(store, "a", 0).await, [5, 6, 7, 8, 9]);
}

async fn appends_an_entry_once(store: &dyn MetadataStore) {
    append(store, "a", 1..4).await;
    append(store, "a", 1..4).await;
    assert_eq!(sequences(store, "a", 0).await, [1, 2, 3], "a repeated call");
    append(store, "a", 2..6).await;
    assert_eq!(
        sequences(store, "a", 0).await,
        [1, 2, 3, 4, 5],
        "an overlap"
    );
    let late = LogEntry {
        sequence: 3,
        bytes: Bytes::from_static(b"other"),
    };
    let again = store.append("a", &[late], false, LONG).await;
    again.expect("append");
    let read = read(store, &[("a", 0)], 100, NOW).await;
    assert_eq!(read[0].entries, entries(1..6), "an entry was replaced");
}

async fn keeps_bytes_as_they_are(store: &dyn MetadataStore) {
    let all: Vec<u8> = (0..=255).collect();
    let large = vec![0xa5; 1 << 20];
    let given: Vec<_> = [Vec::new(), all.clone(), large]
        .into_iter()
        .zip(1..)
        .map(|(bytes, sequence)| LogEntry {
            sequence,
            bytes: bytes.into(),
        })
        .collect();
    let appended = store.append("a", &given, true, LONG).await;
    appended.expect("append");
    let read = read(store, &[("a", 0)], 100, NOW).await;
    assert!(read[0].entries == given, "entries differ from those given");
    let record = Bytes::from(all);
    let renewed = store.renew("n", record.clone(), "a", LONG).await;
    renewed.expect("renew");
    let members = store.members().await.expect("members");
    assert_eq!(members[0].record, record);
}

async fn leaves_out_logs_without_news(store: &dyn MetadataStore) {
    append(store, "a", 1..3).await;
    append(store, "b", 1..4).await;
    append(store, "c", 1..4).await;
    let cursors = [("b", 1), ("missing", 0), ("c", 3), ("a", 1)];
    let mut read = read(store, &cursors, 100, NOW).await;
    read.sort_by(|x, y| x.log.cmp(&y.log));
    let logs: Vec<_> = read.iter().map(|read| &read.log[..]).collect();
    assert_eq!(logs, ["a", "b"]);
    assert_eq!(read[0].entries, entries(2..3));
    assert_eq!(read[1].entries, entries(2..4));
    let none = store.read(&[], 100, NOW).await.expect("read");
    assert_eq!(none, [], "no cursors");
}

async fn wakes_a_waiting_reader(store: &dyn MetadataStore) {
    append(store, "a", 1..2).await;
    let reading = read(store, &[("missing", 0), ("a", 1)], 100, PATIENCE / 2);
    let appending = async {
        sleep(Duration::from_millis(50)).await;
        append(store, "a", 2..3).await;
    };
    let (read, ()) = tokio::join!(reading, appending);
    assert_eq!(read.len(), 1, "the append ends the wait");
    assert_eq!(read[0].entries, entries(2..3));
}

async fn ends_a_wait_without_news(store: &dyn MetadataStore) {
    append(store, "a", 1..2).await;
    for wait in [NOW, Duration::from_millis(100)] {
        let reading = read(store, &[("a", 1), ("missing", 0)], 100, wait);
        let read = timeout(wait + PATIENCE, reading).await;
        assert_eq!(read.expect("the wait ends"), []);
    }
}

async fn retires_a_log_in_spite_of_use(store: &dyn MetadataStore) {
    append(store, "a", 1..2).await;
    append(store, "b", 1..2).await;
    store.retire("a", SHORT).await.expect("retire");
    store.retire("missing", SHORT).await.expect("retire");
    let more = store.append("a", &entries(2..3), false, LONG).await;
    assert!(
        matches!(more, Ok(()) | Err(StoreError::LogLost { .. })),
        "append to a retired log: {more:?}"
    );
    wait_until_gone(store, "a").await;
    assert_eq!(sequences(store, "b", 0).await, [1]);
}

async fn tells_that_everything_was_lost(test: StoreUnderTest) {
    let store = &*test.store;
    renew(store, "a", LONG).await;
    append(store, "a-log", 1..4).await;
    (test.flush)().await;
    assert_eq!(names(store).await, [""; 0], "members after a flush");
    assert_lost(store, "a-log", 4).await;
    assert_eq!(sequences(store, "a-log", 0).await, [], "after a flush");
    assert_eq!(renew(store, "a", LONG).await, renewal(false, false));
    append(store, "a-log", 4..6).await;
    assert_eq!(sequences(store, "a-log", 0).await, [4, 5], "a new log");
    assert_eq!(renew(store, "a", LONG).await, renewal(true, true));
}

fn renewal(lease_kept: bool, log_kept: bool) -> Renewal {
    Renewal {
        lease_kept,
        log_kept,
    }
}

/// Entries with these sequence numbers; each number has its own content.
fn entries(sequences: std::ops::Range<u64>) -> Vec<LogEntry> {
    let entry = |sequence| LogEntry {
        sequence,
        bytes: Bytes::from(format!("entry {sequence}")),
    };
    sequences.map(entry).collect()
}

/// Renews the lease `name` together with the log `name-log`.
async fn renew(store: &dyn MetadataStore, name: &str, ttl: Duration) -> Renewal {
    let log = format!("{name}-log");
    let renewed = store.renew(name, Bytes::from_static(b"r"), &log, ttl).await;
    renewed.expect("renew")
}

async fn append(store: &dyn MetadataStore, log: &str, sequences: std::ops::Range<u64>) {
    let appended = store.append(log, &entries(sequences), true, LONG).await;
    appended.expect("append");
}

async fn assert_lost(store: &dyn MetadataStore, log: &str, sequence: u64) {
    let entries = entries(sequence..sequence + 1);
    let appended = store.append(log, &entries, false, LONG).await;
    let log = log.to_owned();
    assert_eq!(appended, Err(StoreError::LogLost { log }));
}

async fn read(
    store: &dyn MetadataStore,
    cursors: &[(&str, u64)],
    limit: usize,
    wait: Duration,
) -> Vec<LogRead> {
    let cursor = |(log, after): &(&str, u64)| LogCursor {
        log: (*log).to_owned(),
        after: *after,
    };
    let cursors: Vec<_> = cursors.iter().map(cursor).collect();
    store.read(&cursors, limit, wait).await.expect("read")
}

/// Sequence numbers in `log` after `after`.
async fn sequences(store: &dyn MetadataStore, log: &str, after: u64) -> Vec<u64> {
    let read = read(store, &[(log, after)], 100, NOW).await;
    let entries = read.iter().flat_map(|read| &read.entries);
    entries.map(|entry| entry.sequence).collect()
}

async fn wait_until_gone(store: &dyn MetadataStore, log: &str) {
    let waiting = async {
        while !sequences(store, log, 0).await.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = timeout(PATIENCE, waiting).await;
    assert!(gone.is_ok(), "log {log} does not expire");
}

async fn members(store: &dyn MetadataStore) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let members = store.members().await.expect("members");
    let mut members: Vec<_> = members
        .into_iter()
        .map(|member| (member.name, text(&member.record)))
        .collect();
    members.sort();
    members
}

async fn names(store: &dyn MetadataStore) -> Vec<String> {
    members(store)
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}
