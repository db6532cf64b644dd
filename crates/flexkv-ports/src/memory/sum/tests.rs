//! All ways to hash say the same.

use super::*;

#[test]
fn every_way_has_the_value_of_the_library() {
    let lens = (LEAST..LEAST + 200).chain([2047, 2048, 2049, 4096, 10_000, 262_144, 1_000_001]);
    let mut bytes = vec![0; 1_000_001 + 3];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    for len in lens {
        // At an odd address.
        let bytes = &bytes[3..3 + len];
        let sum = Checksum::of(bytes);
        let from = bytes.as_ptr();
        // SAFETY: the bytes are borrowed, and the features looked for.
        unsafe {
            assert_eq!(in_place(from, len).unwrap_or(sum), sum, "{len} bytes");
            if is_x86_feature_detected!("avx512f") {
                assert_eq!(finish(&wide::sums(from, len), len), sum.0, "{len} bytes");
            }
            if is_x86_feature_detected!("avx2") {
                assert_eq!(finish(&narrow::sums(from, len), len), sum.0, "{len} bytes");
            }
        }
    }
}

#[test]
fn few_bytes_are_left_to_others() {
    // SAFETY: nothing is read.
    let none = unsafe { in_place(std::ptr::null(), LEAST - 1) };
    assert_eq!(none, None);
}
