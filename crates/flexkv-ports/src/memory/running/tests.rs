//! Whatever comes when: the sum is that of all bytes.

use std::sync::Arc;

use super::*;
use crate::HeapMemory;

fn filled(len: usize, rng: &mut fastrand::Rng) -> (MemorySlice, Vec<u8>) {
    let memory = Arc::new(HeapMemory::new(len.max(1)));
    let slice = MemorySlice::new(memory, 0, len).expect("all of it");
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    (slice, bytes)
}

#[test]
fn bytes_that_come_in_parts_have_the_checksum_of_the_whole() {
    let mut rng = fastrand::Rng::with_seed(1);
    for len in [
        0, 1, 63, 1000, 1023, 1024, 1025, 2048, 4097, 65_536, 262_145,
    ] {
        for _ in 0..20 {
            let (slice, bytes) = filled(len, &mut rng);
            let ways = [RunningChecksum::of(&slice), RunningChecksum::by_pieces()];
            for mut sum in ways {
                let mut at = 0;
                while at < len {
                    let to = rng.usize(at..=len);
                    slice.write(at, &bytes[at..to]);
                    sum.advance(&slice, to);
                    at = to;
                }
                assert_eq!(sum.finish(&slice), Checksum::of(&bytes), "{len} bytes");
            }
        }
    }
}

#[test]
#[should_panic(expected = "more bytes than the slice has")]
fn bytes_beyond_the_end_are_not_looked_at() {
    let (slice, _) = filled(2048, &mut fastrand::Rng::with_seed(1));
    RunningChecksum::of(&slice).advance(&slice, 2049);
}
