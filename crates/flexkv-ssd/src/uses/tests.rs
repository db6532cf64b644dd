//! The order of use over restarts, of files that grow, and of files that are no such thing.

use super::*;

fn order(path: &Path, slots: usize) -> Vec<u64> {
    let (_, positions) = Uses::open(path.to_owned(), slots);
    let mut order: Vec<(usize, u64)> = positions.into_iter().map(|(it, at)| (at, it)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, it)| it).collect()
}

#[test]
fn the_last_mention_of_each_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uses");
    let (uses, positions) = Uses::open(path.clone(), 10);
    assert!(positions.is_empty());
    uses.note([1, 2, 3]);
    uses.note([2, 1]);
    drop(uses);
    assert_eq!(order(&path, 10), [3, 2, 1]);
    let (uses, _) = Uses::open(path.clone(), 10);
    uses.note([3, 4]);
    drop(uses);
    assert_eq!(order(&path, 10), [2, 1, 3, 4], "it goes on");
    assert_eq!(order(&path, 1), [3, 4], "as many as count");
}

#[test]
fn a_file_does_not_grow_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uses");
    let (uses, _) = Uses::open(path.clone(), 100);
    for round in 0..40u64 {
        uses.note((0..5000).map(|n| round * 5000 + n));
    }
    drop(uses);
    let bytes = fs::metadata(&path).unwrap().len() as usize;
    assert!(bytes <= 8 * (MOST_MIN + 200_001), "{bytes}");
    let order = order(&path, 100);
    assert_eq!(order, (199_800..200_000).collect::<Vec<u64>>());
    assert!(fs::metadata(&path).unwrap().len() < 8 * 300);
}

#[test]
fn a_file_that_is_something_else_or_cut_short_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uses");
    fs::write(&path, b"something else entirely").unwrap();
    assert_eq!(order(&path, 10), []);
    let (uses, _) = Uses::open(path.clone(), 10);
    uses.note([7, 8]);
    drop(uses);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(order(&path, 10), [7]);
    let nowhere = dir.path().join("missing/uses");
    let (uses, positions) = Uses::open(nowhere, 10);
    uses.note([1]);
    assert!(positions.is_empty());
}
