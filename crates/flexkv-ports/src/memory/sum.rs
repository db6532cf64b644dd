//! XXH3-64 of memory that others may write meanwhile, straight from where it lies.
//!
//! Without a copy into private memory and with 256 or 512 bits at a time it costs half; while bytes
//! are hashed, those a few KiB further on are on their way from memory. The values are those of
//! `Checksum::of`. Knows neither slices nor blocks.

use std::ops::Range;

use flexkv_block::Checksum;

/// Bytes of a stripe, which is hashed at once.
const STRIPE: usize = 64;
/// Stripes between two rounds of mixing.
const STRIPES: usize = 16;
/// What is shorter is hashed in another way.
const LEAST: usize = STRIPE * STRIPES;
/// How far ahead bytes are asked for.
const AHEAD: usize = 4096;

/// Where in the secret the keys of these steps begin.
const KEY_OF_MIXING: usize = 128;
const KEY_OF_LAST: usize = 121;
const KEY_OF_END: usize = 11;

const PRIME32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
const PRIME64: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];
const START: [u64; 8] = [
    PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0],
];

/// The secret of XXH3 where none is given.
#[rustfmt::skip]
const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// The eight sums of bytes that come from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    sums: [u64; 8],
    /// Rounds of [`LEAST`] bytes that are in them.
    rounds: usize,
}

impl Sums {
    /// Of no bytes yet; `None` if this CPU can do no better than the usual way, or `len` bytes are too
    /// few.
    pub(super) fn new(len: usize) -> Option<Self> {
        let can = is_x86_feature_detected!("avx512f") || is_x86_feature_detected!("avx2");
        let (sums, rounds) = (START, 0);
        (can && len >= LEAST).then_some(Self { sums, rounds })
    }

    /// Takes in what is before byte `to` of `len`, as far as it makes whole rounds.
    ///
    /// # Safety
    /// The `len` bytes at `from` must be mapped and readable, and at least one; `to` must not be more. Others
    /// may write them: then the result is that of no content.
    pub(super) unsafe fn advance(&mut self, from: *const u8, len: usize, to: usize) {
        // The last bytes of all are in no round.
        let rounds = (to / LEAST).min((len - 1) / LEAST);
        let new = self.rounds..rounds;
        // SAFETY: the rounds are within the `len` bytes; `new` has found one of the features.
        self.sums = unsafe {
            if is_x86_feature_detected!("avx512f") {
                wide::rounds(self.sums, from, new)
            } else {
                narrow::rounds(self.sums, from, new)
            }
        };
        self.rounds = self.rounds.max(rounds);
    }

    /// Takes in what is left of `len` bytes, and gives their checksum.
    ///
    /// # Safety
    /// As for [`advance`](Self::advance), and there must be at least [`LEAST`] bytes.
    pub(super) unsafe fn finish(mut self, from: *const u8, len: usize) -> Checksum {
        // SAFETY: the caller vouches for the bytes; `new` has found one of the features.
        let sums = unsafe {
            self.advance(from, len, len);
            let left = self.rounds * STRIPES..(len - 1) / STRIPE;
            if is_x86_feature_detected!("avx512f") {
                wide::end(self.sums, from, left, len)
            } else {
                narrow::end(self.sums, from, left, len)
            }
        };
        Checksum(join(&sums, len))
    }
}

/// Joins the eight sums.
fn join(sums: &[u64; 8], len: usize) -> u64 {
    let key = |at: usize| {
        let bytes: [u8; 8] = std::array::from_fn(|n| SECRET[at + n]);
        u64::from_le_bytes(bytes)
    };
    let mut sum = (len as u64).wrapping_mul(PRIME64[0]);
    for (n, pair) in sums.chunks_exact(2).enumerate() {
        let at = KEY_OF_END + 16 * n;
        let product = u128::from(pair[0] ^ key(at)) * u128::from(pair[1] ^ key(at + 8));
        sum = sum.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    sum ^= sum >> 37;
    sum = sum.wrapping_mul(0x1656_6791_9E37_79F9);
    sum ^ (sum >> 32)
}

/// Taking bytes into the eight sums, by a CPU's `stripe` and `mix`.
macro_rules! taking {
    ($feature:literal) => {
        /// Takes in whole rounds.
        ///
        /// # Safety
        /// The CPU must have the feature, and the rounds counted from `from` must be readable.
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn rounds(
            sums: [u64; 8],
            from: *const u8,
            rounds: Range<usize>,
        ) -> [u64; 8] {
            let key = SECRET.as_ptr();
            // SAFETY: each stripe is within a round; keys of 64 bytes begin at 128 or before and end within
            // the secret.
            unsafe {
                let mut sums = load(sums.as_ptr().cast());
                for round in rounds {
                    for n in 0..STRIPES {
                        let at = from.add((round * STRIPES + n) * STRIPE);
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                        sums = stripe(sums, load(at), load(key.add(8 * n)));
                    }
                    sums = mix(sums, load(key.add(KEY_OF_MIXING)));
                }
                store(sums)
            }
        }

        /// Takes in the last stripes, fewer than a round, then the last 64 of `len` bytes.
        ///
        /// # Safety
        /// The CPU must have the feature, and the `len` bytes at `from`, at least 64 and more than the
        /// stripes have, must be readable.
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn end(
            sums: [u64; 8],
            from: *const u8,
            stripes: Range<usize>,
            len: usize,
        ) -> [u64; 8] {
            let key = SECRET.as_ptr();
            // SAFETY: the stripes are within the `len` bytes, and so are the last 64; keys as above.
            unsafe {
                let mut sums = load(sums.as_ptr().cast());
                for (n, at) in stripes.enumerate().take(STRIPES) {
                    sums = stripe(sums, load(from.add(at * STRIPE)), load(key.add(8 * n)));
                }
                let last = load(from.add(len - STRIPE));
                store(stripe(sums, last, load(key.add(KEY_OF_LAST))))
            }
        }
    };
}

/// With 512 bits at a time.
mod wide {
    use std::arch::x86_64::{
        __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi64, _mm512_loadu_si512, _mm512_mul_epu32,
        _mm512_set1_epi64, _mm512_shuffle_epi32, _mm512_slli_epi64, _mm512_srli_epi64,
        _mm512_storeu_si512, _mm512_xor_si512,
    };

    use super::{AHEAD, KEY_OF_LAST, KEY_OF_MIXING, PRIME32, Range, SECRET, STRIPE, STRIPES};

    taking!("avx512f");

    /// # Safety
    /// 64 bytes must be readable there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: the caller vouches for them.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(sums: __m512i) -> [u64; 8] {
        let mut out = [0; 8];
        // SAFETY: it has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
        out
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn stripe(sums: __m512i, bytes: __m512i, key: __m512i) -> __m512i {
        let keyed = _mm512_xor_si512(bytes, key);
        let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
        let swapped = _mm512_shuffle_epi32::<0b0100_1110>(bytes);
        _mm512_add_epi64(product, _mm512_add_epi64(sums, swapped))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn mix(sums: __m512i, key: __m512i) -> __m512i {
        let prime = _mm512_set1_epi64(PRIME32[0] as i64);
        let mixed = _mm512_xor_si512(sums, _mm512_srli_epi64::<47>(sums));
        let keyed = _mm512_xor_si512(mixed, key);
        let high = _mm512_mul_epu32(_mm512_srli_epi64::<32>(keyed), prime);
        _mm512_add_epi64(
            _mm512_mul_epu32(keyed, prime),
            _mm512_slli_epi64::<32>(high),
        )
    }
}

/// With 256 bits at a time.
mod narrow {
    use std::arch::x86_64::{
        __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32,
        _mm256_set1_epi64x, _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64,
        _mm256_storeu_si256, _mm256_xor_si256,
    };

    use super::{AHEAD, KEY_OF_LAST, KEY_OF_MIXING, PRIME32, Range, SECRET, STRIPE, STRIPES};

    /// 64 bytes.
    type Both = [__m256i; 2];

    taking!("avx2");

    /// # Safety
    /// 64 bytes must be readable there.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(from: *const u8) -> Both {
        // SAFETY: the caller vouches for them.
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            ]
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(sums: Both) -> [u64; 8] {
        let mut out = [0u64; 8];
        let (low, high) = out.split_at_mut(4);
        // SAFETY: both have 32 bytes.
        unsafe {
            _mm256_storeu_si256(low.as_mut_ptr().cast(), sums[0]);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), sums[1]);
        }
        out
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn stripe(mut sums: Both, bytes: Both, key: Both) -> Both {
        for n in 0..2 {
            let keyed = _mm256_xor_si256(bytes[n], key[n]);
            let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
            let swapped = _mm256_shuffle_epi32::<0b0100_1110>(bytes[n]);
            sums[n] = _mm256_add_epi64(product, _mm256_add_epi64(sums[n], swapped));
        }
        sums
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn mix(mut sums: Both, key: Both) -> Both {
        let prime = _mm256_set1_epi64x(PRIME32[0] as i64);
        for n in 0..2 {
            let mixed = _mm256_xor_si256(sums[n], _mm256_srli_epi64::<47>(sums[n]));
            let keyed = _mm256_xor_si256(mixed, key[n]);
            let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(keyed), prime);
            let low = _mm256_mul_epu32(keyed, prime);
            sums[n] = _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high));
        }
        sums
    }
}

#[cfg(test)]
mod tests;
