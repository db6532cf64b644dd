//! Making and finding files: sizes, another life, another process, a full disk.

use flexkv_block::NamespaceId;

use super::*;

const BLOCK: usize = 5000;

fn geometry(segment_bytes: u64) -> Geometry {
    Geometry::new(NamespaceId::from_u128(7), BLOCK, segment_bytes)
}

fn open(path: &Path, bytes: u64, geometry: &Geometry) -> Segments {
    let fresh = fastrand::Rng::new().u64(..);
    Segments::open(path, bytes, geometry, fresh).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_share_is_cut_into_segments_that_fit_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    // Frame page and two pages of block; a segment of three slots.
    let geometry = geometry(4096 + 3 * 12288);
    assert_eq!(geometry.per_segment, 3);
    let share = 2 * (4096 + 3 * 12288) + 4096 + 12288 + 100;
    let segments = open(dir.path(), share, &geometry);
    assert_eq!((segments.slots, segments.files.len()), (7, 3));
    assert_eq!(segments.there, [0, 0, 0], "new files hold nothing");
    let sizes = segments
        .files
        .iter()
        .map(|f| f.metadata().expect("a file").len());
    assert!(sizes.sum::<u64>() <= share);
}

#[test]
fn what_was_there_is_found_and_a_changed_share_keeps_the_rest() {
    let dir = tempfile::tempdir().expect("a directory");
    let geometry = geometry(4096 + 2 * 12288);
    let full = geometry.segment_bytes(2);
    let first = open(dir.path(), 2 * full, &geometry);
    let epoch = first.epoch;
    drop(first);
    let larger = open(dir.path(), 3 * full, &geometry);
    assert_eq!((larger.epoch, larger.slots), (epoch, 6));
    assert_eq!(larger.there, [full, full, 0]);
    assert!(larger.was_there(3, &geometry) && !larger.was_there(4, &geometry));
    drop(larger);
    let smaller = open(dir.path(), full, &geometry);
    assert_eq!((smaller.epoch, smaller.slots), (epoch, 2));
    assert!(!segment_path(&smaller.dir, 1).exists(), "its space is free");
}

#[test]
fn files_that_are_cut_off_or_foreign_hold_nothing_any_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let geometry = geometry(4096 + 2 * 12288);
    let full = geometry.segment_bytes(2);
    let first = open(dir.path(), 3 * full, &geometry);
    let at = first.dir.clone();
    drop(first);
    let file = |n| {
        OpenOptions::new()
            .write(true)
            .open(segment_path(&at, n))
            .expect("a file")
    };
    file(0).set_len(full - 1).expect("cut off");
    file(1).write_all_at(b"other", 0).expect("overwritten");
    let again = open(dir.path(), 3 * full, &geometry);
    assert_eq!(again.there, [full - 1, 0, full]);
    assert!(again.was_there(0, &geometry) && !again.was_there(1, &geometry));
}

#[test]
fn another_namespace_or_size_of_blocks_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = geometry(1 << 20);
    let first = open(dir.path(), 1 << 20, &one);
    let epoch = first.epoch;
    let other = Geometry::new(NamespaceId::from_u128(8), BLOCK, 1 << 20);
    let second = open(dir.path(), 1 << 20, &other);
    assert_ne!(first.dir, second.dir);
    drop((first, second));
    assert_eq!(open(dir.path(), 1 << 20, &one).epoch, epoch);
}

#[test]
fn one_process_at_a_time_has_a_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let held = open(dir.path(), 1 << 20, &geometry(1 << 20));
    let refused = Segments::open(dir.path(), 1 << 20, &geometry(1 << 20), 1);
    let error = refused.err().expect("the lock is held").to_string();
    assert!(error.contains("in use by another process"), "{error}");
    drop(held);
    open(dir.path(), 1 << 20, &geometry(1 << 20));
}

#[test]
fn a_share_without_room_for_a_block_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = Segments::open(dir.path(), 4096 + 12287, &geometry(1 << 20), 1);
    let error = refused.err().expect("too small").to_string();
    assert!(
        error.contains("16383 bytes hold no block; one needs 16384"),
        "{error}"
    );
}

#[test]
fn a_full_file_system_gives_what_it_has() {
    let room = |limit| {
        move |slots| {
            if slots <= limit {
                Ok(())
            } else {
                Err(Errno::NOSPC)
            }
        }
    };
    assert_eq!(fit(100, room(100)), Ok(100));
    assert_eq!(fit(100, room(30)), Ok(25));
    assert_eq!(fit(100, room(0)), Ok(0));
    assert_eq!(fit(100, |_| Err(Errno::IO)), Err(Errno::IO));
}
