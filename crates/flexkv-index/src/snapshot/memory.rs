//! Memory that readers look at while the writer changes it: atomic words in chunks that never move.
//!
//! Chunks grow with what there is, by a sixteenth, so that an index finds its chunk by a bit scan,
//! little is idle and no growth takes long. The arena hands out arrays of words in size classes. Nothing here knows what the words mean.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Eight words that share one cache line.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Line(pub(super) [AtomicU64; 8]);

/// `len` lines of zeros.
pub(super) fn lines(len: usize) -> Box<[Line]> {
    (0..len).map(|_| Line::default()).collect()
}

/// `len` words of zeros. Built from a plain vector, whose zeros the system supplies only once a
/// page is used; the conversion keeps its memory.
fn words(len: usize) -> Box<[AtomicU64]> {
    let words: Vec<AtomicU64> = vec![0u64; len].into_iter().map(AtomicU64::new).collect();
    words.into_boxed_slice()
}

/// Each power of two of indices is divided into `2^STEP_BITS` chunks.
const STEP_BITS: u32 = 4;
const CHUNKS: usize = 32 << STEP_BITS;

/// A growing array: the first `2^STEP_BITS` chunks have `2^FIRST_BITS` items each, the next ones
/// twice as many, and so on.
pub(super) struct Chunks<T, const FIRST_BITS: u32> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
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
        let (chunk, offset) = Self::place(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// `len` items from `index` on. A range that no array can have is empty: readers may come with
    /// a reference that was torn by the writer, and find out afterwards.
    #[inline]
    pub(super) fn slice(&self, index: usize, len: usize) -> &[T] {
        let (chunk, offset) = Self::place(index);
        self.chunks
            .get(chunk)
            .and_then(OnceLock::get)
            .and_then(|items| items.get(offset..offset + len))
            .unwrap_or_default()
    }

    /// The first index from `index` on where `len` items lie in one chunk.
    fn fit(index: usize, len: usize) -> usize {
        let (mut chunk, offset) = Self::place(index);
        if offset + len <= Self::chunk_len(chunk) {
            return index;
        }
        chunk += 1;
        while Self::chunk_len(chunk) < len {
            chunk += 1;
        }
        Self::chunk_start(chunk)
    }

    /// Makes the chunk of `index` exist.
    pub(super) fn grow(&self, index: usize, make: fn(usize) -> Box<[T]>) {
        let (chunk, _) = Self::place(index);
        self.chunks[chunk].get_or_init(|| make(Self::chunk_len(chunk)));
    }
}

/// All arrays: fingerprints, spans, locations.
pub(super) type Words = Chunks<AtomicU64, 12>;

/// Words per granule: arrays are referred to in granules.
const GRANULE: usize = 2;

/// An array of words in the arena. The default is no array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Array {
    /// First granule, 38 bits.
    at: u64,
    /// Size class, 6 bits.
    class: u8,
}

impl Array {
    pub(super) fn capacity(self) -> usize {
        capacity(self.class)
    }

    /// The first `len` words of the array.
    #[inline]
    pub(super) fn slice(self, words: &Words, len: usize) -> &[AtomicU64] {
        words.slice(self.at as usize * GRANULE, len)
    }

    /// Array and length in one word, so that readers get both or neither.
    pub(super) fn pack(self, len: usize) -> u64 {
        self.at | (u64::from(self.class) << 38) | ((len as u64) << 44)
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> (Self, usize) {
        let array = Self {
            at: word & ((1 << 38) - 1),
            class: (word >> 38) as u8 & 63,
        };
        (array, (word >> 44) as usize)
    }
}

/// Words in an array of a class: 2, 4, 6, 8, 12, 16, 24, 32 and so on.
fn capacity(class: u8) -> usize {
    match class {
        0 => 0,
        1 => 2,
        odd if odd % 2 == 1 => 3 << (odd / 2),
        even => 2 << (even / 2),
    }
}

/// The smallest class with room for `len` words.
fn class_for(len: usize) -> u8 {
    let mut class = (2 * len.max(1).ilog2()).saturating_sub(2) as u8;
    while capacity(class) < len {
        class += 1;
    }
    class
}

/// Copies words one by one.
pub(super) fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Hands out arrays. Freed ones are reused within their class.
#[derive(Default)]
pub(super) struct Arena {
    /// The first word that was never handed out.
    next: usize,
    /// Words handed out so far, freed ones included.
    touched: usize,
    free: Vec<Vec<u64>>,
    /// Arrays that are no longer referred to once the change in progress is published.
    retired: Vec<Array>,
}

impl Arena {
    /// An array with room for `len` words; their content is arbitrary.
    pub(super) fn alloc(&mut self, words: &Words, len: usize) -> Array {
        let class = class_for(len);
        if class == 0 {
            return Array::default();
        }
        if let Some(at) = self.free.get_mut(usize::from(class)).and_then(Vec::pop) {
            return Array { at, class };
        }
        let capacity = capacity(class);
        let index = Words::fit(self.next, capacity);
        words.grow(index, self::words);
        self.next = index + capacity;
        self.touched += capacity;
        Array {
            at: (index / GRANULE) as u64,
            class,
        }
    }

    /// An array for `need` words that begins with the first `used` words of `array`: the same one if
    /// its size suits, else another, and the old one is retired.
    pub(super) fn fitted(
        &mut self,
        words: &Words,
        array: Array,
        used: usize,
        need: usize,
    ) -> Array {
        let capacity = array.capacity();
        if need <= capacity && capacity <= 4 * need {
            return array;
        }
        let fitted = self.alloc(words, need);
        let kept = used.min(need);
        copy(array.slice(words, kept), fitted.slice(words, kept));
        self.retire(array);
        fitted
    }

    /// Gives an array back at the next [`Self::reclaim`].
    pub(super) fn retire(&mut self, array: Array) {
        if array.class != 0 {
            self.retired.push(array);
        }
    }

    /// Frees the retired arrays. Only right after the change that cut them off was published: a
    /// reader that still looks at one then notices.
    pub(super) fn reclaim(&mut self) {
        while let Some(array) = self.retired.pop() {
            let class = usize::from(array.class);
            if self.free.len() <= class {
                self.free.resize_with(class + 1, Vec::new);
            }
            self.free[class].push(array.at);
        }
    }

    /// Words handed out so far, freed ones included.
    pub(super) fn touched(&self) -> usize {
        self.touched
    }

    /// Words in arrays that are in use.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        let free = self.free.iter().enumerate();
        self.touched
            - free
                .map(|(class, list)| capacity(class as u8) * list.len())
                .sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_tight_and_grow() {
        for len in 0..5_000 {
            let class = class_for(len);
            assert!(capacity(class) >= len);
            assert!(class == 0 || capacity(class - 1) < len, "{len}");
        }
    }

    #[test]
    fn chunks_follow_each_other() {
        let mut index = 0;
        for chunk in 0..100 {
            let len = Words::chunk_len(chunk);
            assert_eq!(Words::chunk_start(chunk), index);
            assert_eq!(Words::place(index), (chunk, 0));
            assert_eq!(Words::place(index + len - 1), (chunk, len - 1));
            index += len;
        }
    }

    #[test]
    fn arrays_never_cross_a_chunk_and_survive_packing() {
        let memory = Words::new();
        let mut arena = Arena::default();
        for len in [1, 5_000, 3, 9_000, 100_000, 512, 2] {
            let array = arena.alloc(&memory, len);
            assert_eq!(array.slice(&memory, len).len(), len);
            assert_eq!(Array::unpack(array.pack(len)), (array, len));
            arena.retire(array);
        }
        arena.reclaim();
        assert_eq!(arena.in_use(), 0);
        let before = arena.touched();
        arena.alloc(&memory, 9_000);
        assert_eq!(arena.touched(), before, "freed arrays are reused");
    }
}
