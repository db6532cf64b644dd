//! The code against its definition, chunk by chunk.

use super::*;

/// Product in GF(2^128), by its definition.
fn multiply(a: u128, b: u128) -> u128 {
    let (mut sum, mut shifted) = (0, b);
    for bit in 0..128 {
        sum ^= if a >> bit & 1 == 1 { shifted } else { 0 };
        shifted = double(shifted);
    }
    sum
}

fn aes(key: &Aes128, input: u128) -> u128 {
    let mut block = Array(input.to_le_bytes());
    key.encrypt_block(&mut block);
    number(&block)
}

fn value(chunk: &Chunk) -> u128 {
    chunk
        .iter()
        .rev()
        .fold(0, |sum, word| sum << 32 | u128::from(*word))
}

#[test]
fn a_sum_is_that_of_the_definition() {
    let keys = Keys::derive(b"secret");
    let mut scratch = Scratch::new();
    let multiple = aes(&keys.inner, 0);
    for position in [1u64, 255, 256, 300, 511, 0x0123_4567_89ab_cd00, u64::MAX] {
        let count = WINDOW - position as usize % WINDOW;
        let chunks: Vec<Chunk> = (0..count as u32).map(|i| [i, 7, i * i, !i]).collect();
        let mut expected = 5;
        for (position, chunk) in (position..=u64::MAX).zip(&chunks) {
            let mask = multiply(u128::from(position), multiple);
            expected ^= aes(&keys.inner, value(chunk) ^ mask);
        }
        let mut sum = 5;
        keys.add(&mut sum, position, &chunks, &mut scratch);
        assert_eq!(sum, expected, "position {position}");
        assert_eq!(keys.code(sum), aes(&keys.outer, expected));
    }
}

#[test]
fn codes_in_parts_are_those_of_growing_messages() {
    let keys = Keys::derive(b"secret");
    let chunks: Vec<Chunk> = (0..24).map(|i| [i, i + 1, 0, 9]).collect();
    for part in [1, 2, 3, 8, 24] {
        let mut scratch = Scratch::new();
        let mut sum = 0;
        let codes = keys.codes(&mut sum, 512, &chunks, part, &mut scratch);
        let codes: Vec<u128> = codes.collect();
        assert_eq!(codes.len(), 24 / part);
        let mut scratch = Scratch::new();
        for (i, code) in codes.iter().enumerate() {
            let mut sum = 0;
            keys.add(&mut sum, 512, &chunks[..(i + 1) * part], &mut scratch);
            assert_eq!(*code, keys.code(sum));
        }
    }
}

#[test]
fn doubling_reduces_by_the_polynomial() {
    assert_eq!(double(1), 2);
    assert_eq!(double(1 << 127), 0x87);
    assert_eq!(
        multiply(double(1 << 127), 1 << 100),
        multiply(0x87, 1 << 100)
    );
}

/// Two keys of one secret differ, and so do those of two secrets.
#[test]
fn keys_have_nothing_in_common() {
    let [a, b] = [b"a", b"b"].map(|secret| Keys::derive(secret));
    let codes = [&a.inner, &a.outer, &b.inner, &b.outer].map(|key| aes(key, 1));
    for (i, code) in codes.iter().enumerate() {
        assert!(!codes[..i].contains(code));
    }
}
