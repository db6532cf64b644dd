//! The index benchmark: every row is there and measured, at a size that is fast.

use super::*;

#[test]
fn every_row_is_measured_and_named_once() {
    let rows = run(20_000);
    let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), 13);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 13, "{names:?}");
    for row in &rows {
        assert!(row.value.is_finite() && row.value > 0.0, "{row:?}");
        assert_eq!(row.peer.is_some(), row.peer_value.is_some(), "{row:?}");
    }
}
