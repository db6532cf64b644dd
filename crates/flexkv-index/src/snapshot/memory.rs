//! Memory that readers look at while the writer changes it: atomic words in chunks that never move.
//!
//! Chunks grow with what there is, by a sixteenth, so that an index finds its chunk by a bit scan,
//! little is idle and no growth takes long. Nothing here knows what the words mean, nor which are free.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a cache line.
pub(super) const LINE_WORDS: usize = 8;

/// Eight words that share one cache line.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Line(pub(super) [AtomicU64; LINE_WORDS]);

/// Items of a chunk, from `skip` on.
pub(super) struct Chunk<T> {
    items: Box<[T]>,
    skip: usize,
}

/// `len` lines of zeros.
pub(super) fn lines(len: usize) -> Chunk<Line> {
    Chunk {
        items: (0..len).map(|_| Line::default()).collect(),
        skip: 0,
    }
}

/// `len` words of zeros that begin with a cache line. Built from a plain vector, whose zeros the
/// system supplies only once a page is used; the conversion keeps its memory.
pub(super) fn words(len: usize) -> Chunk<AtomicU64> {
    let items = vec![0u64; len + LINE_WORDS - 1];
    let items: Vec<AtomicU64> = items.into_iter().map(AtomicU64::new).collect();
    let over = items.as_ptr().addr() % size_of::<Line>();
    Chunk {
        items: items.into_boxed_slice(),
        skip: (size_of::<Line>() - over) % size_of::<Line>() / size_of::<u64>(),
    }
}

/// Each power of two of indices is divided into `2^STEP_BITS` chunks.
const STEP_BITS: u32 = 4;
const CHUNKS: usize = 32 << STEP_BITS;

/// A growing array: the first `2^STEP_BITS` chunks have `2^FIRST_BITS` items each, the next ones
/// twice as many, and so on.
pub(super) struct Chunks<T, const FIRST_BITS: u32> {
    chunks: [OnceLock<Chunk<T>>; CHUNKS],
}

impl<T, const FIRST_BITS: u32> Chunks<T, FIRST_BITS> {
    /// What is added to an index, so that its highest bits tell its chunk.
    const SHIFT: usize = 1 << (FIRST_BITS + STEP_BITS);

    pub(super) fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
        }
    }

    /// Chunk of an item and its place there.
    #[inline]
    fn place(index: usize) -> (usize, usize) {
        let shifted = index + Self::SHIFT;
        let chunk_bits = shifted.ilog2() - STEP_BITS;
        let doublings = (chunk_bits - FIRST_BITS) as usize;
        // `shifted >> chunk_bits` is 2^STEP_BITS plus the step within the doubling.
        let chunk = (doublings << STEP_BITS) + (shifted >> chunk_bits) - (1 << STEP_BITS);
        (chunk, shifted & ((1 << chunk_bits) - 1))
    }

    const fn chunk_len(chunk: usize) -> usize {
        1 << (FIRST_BITS as usize + (chunk >> STEP_BITS))
    }

    /// Index of a chunk's first item.
    const fn chunk_start(chunk: usize) -> usize {
        let step = chunk & ((1 << STEP_BITS) - 1);
        (step + (1 << STEP_BITS)) * Self::chunk_len(chunk) - Self::SHIFT
    }

    /// The item, if its chunk exists.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.slice(index, 1).first()
    }

    /// `len` items from `index` on. A range that no array can have is empty: readers may come with
    /// a reference that was torn by the writer, and find out afterwards.
    #[inline]
    pub(super) fn slice(&self, index: usize, len: usize) -> &[T] {
        let (chunk, offset) = Self::place(index);
        self.chunks
            .get(chunk)
            .and_then(OnceLock::get)
            .and_then(|chunk| chunk.items.get(chunk.skip + offset..)?.get(..len))
            .unwrap_or_default()
    }

    /// Whether a chunk begins at `index`.
    pub(super) fn is_chunk_start(index: usize) -> bool {
        Self::place(index).1 == 0
    }

    /// The first index after that of `index` where a chunk begins.
    pub(super) fn chunk_end(index: usize) -> usize {
        Self::chunk_start(Self::place(index).0 + 1)
    }

    /// Makes the chunk of `index` exist.
    pub(super) fn grow(&self, index: usize, make: fn(usize) -> Chunk<T>) {
        let (chunk, _) = Self::place(index);
        self.chunks[chunk].get_or_init(|| make(Self::chunk_len(chunk)));
    }
}

/// All arrays: fingerprints, spans, locations, heads.
pub(super) type Words = Chunks<AtomicU64, 12>;

/// Copies words one by one.
pub(super) fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other() {
        let mut index = 0;
        for chunk in 0..100 {
            let len = Words::chunk_len(chunk);
            assert_eq!(Words::chunk_start(chunk), index);
            assert_eq!(Words::place(index), (chunk, 0));
            assert_eq!(Words::place(index + len - 1), (chunk, len - 1));
            assert!(Words::is_chunk_start(index) && !Words::is_chunk_start(index + 1));
            index += len;
            assert_eq!(Words::chunk_end(index - 1), index);
        }
    }

    #[test]
    fn words_begin_with_a_cache_line() {
        let memory = Words::new();
        for index in [0, 4096, 1 << 20] {
            memory.grow(index, words);
            let line = memory.slice(index, LINE_WORDS);
            assert_eq!(line.len(), LINE_WORDS);
            assert_eq!(line.as_ptr().addr() % size_of::<Line>(), 0);
        }
    }
}
