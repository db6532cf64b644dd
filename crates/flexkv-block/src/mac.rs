//! A message authentication code over 16-byte chunks, many of which are computed at once.
//!
//! It is PMAC (Black and Rogaway, 2002) with AES-128 and two keys: a chunk at position `n > 0` adds
//! `AES(inner; chunk ⊕ n·L)` to a sum, where `L = AES(inner; 0)` and `n·L` is a product in GF(2^128);
//! `AES(outer; sum)` is the code of all chunks so far. Chunks do not wait for each other, so the
//! processor works on many at a time. Does not know what chunks mean: whoever places them sees to
//! it that no two messages have the same chunks at the same positions.

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Block};
use sha2::{Digest, Sha256};

/// Sixteen bytes, as little-endian numbers.
pub(crate) type Chunk = [u32; 4];

/// Chunks that can be added at once: their positions differ in the lowest bits only.
pub(crate) const WINDOW: usize = 1 << WINDOW_BITS;
const WINDOW_BITS: u32 = 8;

/// First bytes of what the keys are derived from; changes when codes are computed in another way.
const PURPOSE: &[u8] = b"flexkv keys 2\0";

/// The two keys, and multiples of `L`.
pub(crate) struct Keys {
    inner: Aes128,
    outer: Aes128,
    /// `n·L` for the positions of the first window.
    window: [Chunk; WINDOW],
    /// `2^i·L` for each bit of a position that tells its window.
    windows: [Chunk; (u64::BITS - WINDOW_BITS) as usize],
}

/// Room for the chunks of a window while they are encrypted, and for sums.
#[derive(Clone)]
pub(crate) struct Scratch {
    blocks: [Block; WINDOW],
    sums: [u128; WINDOW],
}

impl Scratch {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self {
            blocks: [Array([0; 16]); WINDOW],
            sums: [0; WINDOW],
        })
    }
}

pub(crate) fn chunk(value: u128) -> Chunk {
    std::array::from_fn(|i| (value >> (32 * i)) as u32)
}

/// Twice a number in GF(2^128), that is modulo x^128 + x^7 + x^2 + x + 1.
fn double(value: u128) -> u128 {
    (value << 1) ^ ((value >> 127) * 0x87)
}

fn xor(a: &Chunk, b: &Chunk) -> Chunk {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn set(block: &mut Block, chunk: &Chunk) {
    for (bytes, word) in block.0.chunks_exact_mut(4).zip(chunk) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

fn number(block: &Block) -> u128 {
    u128::from_le_bytes(block.0)
}

impl Keys {
    /// Inner and outer key are the halves of SHA-256 of a purpose and the secret.
    pub(crate) fn derive(secret: &[u8]) -> Self {
        let hasher = Sha256::new_with_prefix(PURPOSE).chain_update(secret);
        let digest: [u8; 32] = hasher.finalize().into();
        let key = |from: usize| Aes128::new(&Array::from_fn(|i| digest[from + i]));
        let inner = key(0);
        let mut first = Array([0; 16]);
        inner.encrypt_block(&mut first);
        let mut multiple = number(&first);
        let mut next = || {
            let now = chunk(multiple);
            multiple = double(multiple);
            now
        };
        let mut window = [[0; 4]; WINDOW];
        for bit in 0..WINDOW_BITS {
            let (done, new) = window.split_at_mut(1 << bit);
            let multiple = next();
            for (new, done) in new.iter_mut().zip(done) {
                *new = xor(done, &multiple);
            }
        }
        Self {
            inner,
            outer: key(16),
            window,
            windows: std::array::from_fn(|_| next()),
        }
    }

    /// `n·L` for a window's first position.
    fn window_mask(&self, position: u64) -> Chunk {
        let mut rest = position >> WINDOW_BITS;
        let mut mask = [0; 4];
        while rest != 0 {
            mask = xor(&mask, &self.windows[rest.trailing_zeros() as usize]);
            rest &= rest - 1;
        }
        mask
    }

    /// Adds chunks at successive positions, all in the window of `position`, to a sum.
    #[inline]
    pub(crate) fn add(
        &self,
        sum: &mut u128,
        position: u64,
        chunks: &[Chunk],
        scratch: &mut Scratch,
    ) {
        for block in self.encrypt(position, chunks, scratch) {
            *sum ^= number(block);
        }
    }

    /// Adds chunks as [`Self::add`] does, and gives the code after each `part` of them.
    #[inline]
    pub(crate) fn codes<'a>(
        &self,
        sum: &mut u128,
        position: u64,
        chunks: &[Chunk],
        part: usize,
        scratch: &'a mut Scratch,
    ) -> impl Iterator<Item = u128> + use<'a> {
        self.encrypt(position, chunks, scratch);
        let count = chunks.len() / part;
        let Scratch { blocks, sums } = scratch;
        for (part, after) in blocks.chunks_exact(part).zip(&mut sums[..count]) {
            *sum ^= part.iter().fold(0, |sum, block| sum ^ number(block));
            *after = *sum;
        }
        for (block, sum) in blocks.iter_mut().zip(&sums[..count]) {
            block.0 = sum.to_le_bytes();
        }
        self.outer.encrypt_blocks(&mut blocks[..count]);
        blocks[..count].iter().map(number)
    }

    /// What chunks at successive positions of one window add.
    #[inline]
    fn encrypt<'a>(
        &self,
        position: u64,
        chunks: &[Chunk],
        scratch: &'a mut Scratch,
    ) -> &'a [Block] {
        let mask = self.window_mask(position);
        let own = &self.window[position as usize % WINDOW..];
        let blocks = &mut scratch.blocks[..chunks.len()];
        for ((block, chunk), own) in blocks.iter_mut().zip(chunks).zip(own) {
            set(block, &xor(&xor(chunk, own), &mask));
        }
        self.inner.encrypt_blocks(blocks);
        blocks
    }

    /// The code that belongs to a sum.
    pub(crate) fn code(&self, sum: u128) -> u128 {
        let mut block = Array(sum.to_le_bytes());
        self.outer.encrypt_block(&mut block);
        number(&block)
    }
}

#[cfg(test)]
mod tests;
