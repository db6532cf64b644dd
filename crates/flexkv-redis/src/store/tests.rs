//! How calls are cut into commands. What the commands do is tried on a real server in `tests/it`.

use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::LogEntry;

use super::{APPEND_BYTES, APPEND_ENTRIES, milliseconds, parts};

fn entries(count: usize, bytes: usize) -> Vec<LogEntry> {
    let bytes = Bytes::from(vec![0; bytes]);
    let entry = |sequence| LogEntry {
        sequence,
        bytes: bytes.clone(),
    };
    (1..=count as u64).map(entry).collect()
}

#[test]
fn times_are_whole_milliseconds_and_never_zero() {
    for (time, expected) in [
        (Duration::ZERO, 1),
        (Duration::from_nanos(1), 1),
        (Duration::from_micros(1001), 2),
        (Duration::from_secs(3), 3000),
        (Duration::MAX, 365 * 24 * 3600 * 1000),
    ] {
        assert_eq!(milliseconds(time), expected, "{time:?}");
    }
}

#[test]
fn large_appends_are_cut() {
    let lengths = |count, bytes| -> Vec<usize> {
        let entries = entries(count, bytes);
        let parts = parts(&entries);
        assert_eq!(parts.concat(), entries, "nothing is lost or moved");
        parts.iter().map(|part| part.len()).collect()
    };
    assert_eq!(lengths(0, 0), [0], "an empty log can be created");
    assert_eq!(lengths(3, 10), [3]);
    assert_eq!(lengths(APPEND_ENTRIES + 1, 1), [APPEND_ENTRIES, 1]);
    assert_eq!(lengths(3, APPEND_BYTES / 2), [2, 1]);
    assert_eq!(
        lengths(2, APPEND_BYTES + 1),
        [1, 1],
        "one entry is never cut"
    );
}
