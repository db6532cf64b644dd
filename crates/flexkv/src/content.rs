//! The bytes that simulated engines put into blocks: derived from the block's key, so that whoever
//! gets a block can check every byte of it. Knows nothing of caches, nodes or traffic.

use flexkv_block::{BlockKey, Checksum};
use flexkv_ports::MemorySlice;

/// Bytes made at a time: small enough to stay in cache between making, copying and hashing.
const PIECE: usize = 4096;

/// Writes the bytes `at..at + out.len()` of the block `key`; `at` is a multiple of 8.
fn fill_at(key: BlockKey, at: usize, out: &mut [u8]) {
    let seed = key.fingerprint() ^ splitmix((key.as_u128() >> 64) as u64, 0);
    let first = (at / 8) as u64;
    for (i, word) in out.chunks_mut(8).enumerate() {
        let bytes = splitmix(seed, first + i as u64).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Output `i` of the SplitMix64 generator seeded with `seed`.
pub(crate) fn splitmix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the whole block `key`.
pub fn fill(key: BlockKey, out: &mut [u8]) {
    fill_at(key, 0, out);
}

/// Writes the block `key` into `into` and returns the checksum of what was written.
pub fn write_block(key: BlockKey, into: &MemorySlice) -> Checksum {
    let mut piece = [0u8; PIECE];
    let mut sum = Checksum::stream();
    for at in (0..into.len()).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(into.len() - at)];
        fill_at(key, at, piece);
        sum.update(piece);
        into.write(at, piece);
    }
    sum.finish()
}

/// Whether `block` holds the block `key`, byte for byte.
pub fn check_block(key: BlockKey, block: &MemorySlice) -> bool {
    let mut found = [0u8; PIECE];
    let mut wanted = [0u8; PIECE];
    (0..block.len()).step_by(PIECE).all(|at| {
        let n = PIECE.min(block.len() - at);
        block.read(at, &mut found[..n]);
        fill_at(key, at, &mut wanted[..n]);
        found[..n] == wanted[..n]
    })
}

#[cfg(test)]
mod tests;
