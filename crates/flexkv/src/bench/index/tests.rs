//! The index benchmark: every row is there and measured, at a size that is fast.

use super::*;

/// A part of the name of each row that has a target, and the target.
const TARGETS: [(&str, f64); 15] = [
    ("keys of a 32768-token prompt, 16", 30.0),
    ("1 M replicas, full hit, p50", 2.0),
    ("match against the baseline, 1 M", 50.0),
    ("10 M replicas, full hit, p50", 4.0),
    ("10 M replicas in pieces", 8.0),
    ("four times the owners", 3.0),
    ("1 M replicas, miss, p50", 0.3),
    ("10 M replicas, miss, p50", 0.3),
    ("1 reader beside deltas at full rate: p99 against", 2.0),
    ("locations of 2048 matched blocks", 5.0),
    ("apply, first fill, per block", 0.15),
    ("an owner's death", 1.0),
    ("1.5 owners a block", 20.0),
    ("1 owner a block, long prompts", 32.0),
    ("1 owner a block, 5 to 14", 32.0),
];

#[test]
fn every_row_is_measured_and_named_once() {
    let rows = run(8_000);
    let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len(), "{names:?}");
    for row in &rows {
        assert!(row.value.is_finite() && row.value > 0.0, "{row:?}");
        assert_eq!(row.peer.is_some(), row.peer_value.is_some(), "{row:?}");
    }
    for (part, target) in TARGETS {
        let found = rows.iter().find(|row| row.name.contains(part));
        assert_eq!(found.and_then(|row| row.target), Some(target), "{part}");
    }
}
