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
        let (sum, from) = (Checksum::of(bytes), bytes.as_ptr());
        let all = 0..(len - 1) / LEAST;
        let left = all.end * STRIPES..(len - 1) / STRIPE;
        // SAFETY: the bytes are borrowed, and the features looked for.
        unsafe {
            if let Some(sums) = Sums::new(len) {
                assert_eq!(sums.finish(from, len), sum, "{len} bytes");
            }
            if is_x86_feature_detected!("avx512f") {
                let sums = wide::rounds(START, from, all.clone());
                let sums = wide::end(sums, from, left.clone(), len);
                assert_eq!(join(&sums, len), sum.0, "{len} bytes");
            }
            if is_x86_feature_detected!("avx2") {
                let sums = narrow::rounds(START, from, all);
                let sums = narrow::end(sums, from, left, len);
                assert_eq!(join(&sums, len), sum.0, "{len} bytes");
            }
        }
    }
}

#[test]
fn few_bytes_are_left_to_others() {
    assert!(Sums::new(LEAST - 1).is_none());
}
