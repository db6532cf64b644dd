//! Copies in and out of shared memory, and its borders.

use std::sync::Arc;

use super::*;
use crate::HeapMemory;

fn slice(len: usize) -> MemorySlice {
    let memory = Arc::new(HeapMemory::new(len + 20));
    MemorySlice::new(memory, 10, len).expect("inside")
}

#[test]
fn a_slice_lies_inside_its_memory() {
    let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(100));
    for (offset, len, inside) in [
        (0, 100, true),
        (100, 0, true),
        (40, 60, true),
        (40, 61, false),
        (101, 0, false),
        (usize::MAX, 2, false),
    ] {
        let slice = MemorySlice::new(memory.clone(), offset, len);
        assert_eq!(slice.is_some(), inside, "{offset}+{len}");
    }
}

#[test]
fn writes_stay_inside_the_range() {
    let whole = MemorySlice::new(Arc::new(HeapMemory::new(30)), 0, 30).expect("inside");
    let part = whole.part(10, 10);
    part.write(0, &[1; 10]);
    part.part(4, 3).write(1, &[2; 2]);
    assert_eq!(part.to_vec(), [1, 1, 1, 1, 1, 2, 2, 1, 1, 1]);
    assert_eq!(whole.part(0, 10).to_vec(), [0; 10]);
    assert_eq!(whole.part(20, 10).to_vec(), [0; 10]);
}

#[test]
fn borders_are_checked() {
    let panics = |access: &dyn Fn(MemorySlice)| {
        let access = std::panic::AssertUnwindSafe(|| access(slice(8)));
        std::panic::catch_unwind(access).is_err()
    };
    assert!(panics(&|slice| slice.write(1, &[0; 8])));
    assert!(panics(&|slice| slice.write(usize::MAX, &[0; 2])));
    assert!(panics(&|slice| slice.read(5, &mut [0; 4])));
    assert!(panics(&|slice| drop(slice.part(9, 0))));
    assert!(panics(&|slice| drop(slice.part(4, usize::MAX))));
    assert!(panics(&|small| small.write_from(&slice(9))));
    assert!(!panics(&|slice| slice.write(0, &[0; 8])));
    assert!(!panics(&|slice| slice.write(8, &[])));
}

#[test]
fn copies_and_checksums_cross_the_piece_borders() {
    for len in [0, 1, 4095, 4096, 4097, 10_000] {
        let mut bytes = vec![0; len];
        fastrand::Rng::with_seed(len as u64).fill(&mut bytes);
        let (from, into) = (slice(len), slice(len));
        from.write(0, &bytes);
        into.write_from(&from);
        assert_eq!(into.to_vec(), bytes, "{len} bytes");
        assert_eq!(into.checksum(), Checksum::of(&bytes), "{len} bytes");
    }
}

#[test]
fn bytes_written_past_the_caches_arrive_wherever_they_begin_and_end() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for (at, len) in [(0, 0), (0, 1000), (1, 64), (7, 500), (63, 130), (999, 1)] {
        let slice = slice(1000);
        let mut writer = PastCaches::new(&slice);
        writer.write(at, &bytes[..len]);
        drop(writer);
        let mut expected = vec![0; 1000];
        expected[at..at + len].copy_from_slice(&bytes[..len]);
        assert_eq!(slice.to_vec(), expected, "{len} bytes at {at}");
    }
}

#[test]
#[should_panic(expected = "outside of its slice")]
fn nothing_is_written_past_the_caches_behind_the_end() {
    PastCaches::new(&slice(10)).write(5, &[0; 6]);
}
