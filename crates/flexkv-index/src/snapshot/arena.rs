//! Hands out arrays of words, and takes them back.
//!
//! An array has exactly as many granules of two words as it needs (a few more if it is long). Free
//! neighbours become one again, so memory that is given back can be used for arrays of any size.
//! Only the writer allocates; readers of an array that was given back find out by other means.
//!
//! A free range says so in its own words: links to the next and the previous one of its size class
//! in its first word, its size in its second and in its last one. A bitmap marks the first and the
//! last granule of each. Nothing here knows what arrays are for.

use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{LINE_WORDS, Words, copy, words};

/// Words per granule.
const GRANULE: usize = 2;
const LINE_GRANULES: u32 = (LINE_WORDS / GRANULE) as u32;

/// Granules of an index that is full; what is above remains for changes of what is there.
const FULL: u32 = u32::MAX - (1 << 24);

const SIZE_BITS: u32 = 10;
const STEPS: u32 = 32;

/// An array of words in the arena. The default is no array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Array {
    /// First granule.
    at: u32,
    /// How many granules, encoded.
    size: Size,
}

/// A number of granules: exact up to 63, then with six significant bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size(u16);

impl Size {
    fn granules(self) -> u32 {
        let code = u32::from(self.0);
        match (code / STEPS).checked_sub(1) {
            None => code,
            // Torn references may say anything.
            Some(shift) => ((STEPS + code % STEPS) << shift.min(26)).max(1),
        }
    }

    /// The largest size that is no larger.
    fn at_most(granules: u32) -> Self {
        let shift = granules.checked_ilog2().unwrap_or(0).saturating_sub(5);
        Self((shift * STEPS + (granules >> shift)) as u16)
    }

    /// The smallest size that is no smaller.
    fn at_least(granules: u32) -> Self {
        let below = Self::at_most(granules);
        Self(below.0 + u16::from(below.granules() < granules))
    }
}

impl Array {
    #[cfg(test)]
    fn capacity(self) -> usize {
        self.size.granules() as usize * GRANULE
    }

    /// The first `len` words of the array.
    #[inline]
    pub(super) fn slice(self, words: &Words, len: usize) -> &[AtomicU64] {
        words.slice(self.at as usize * GRANULE, len)
    }

    /// Array and length in one word, so that readers get both or neither.
    pub(super) fn pack(self, len: usize) -> u64 {
        u64::from(self.at) | (u64::from(self.size.0) << 32) | ((len as u64) << (32 + SIZE_BITS))
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> (Self, usize) {
        let array = Self {
            at: word as u32,
            size: Size((word >> 32) as u16 & ((1 << SIZE_BITS) - 1)),
        };
        (array, (word >> (32 + SIZE_BITS)) as usize)
    }
}

/// The end of a list of free ranges.
const NONE: u32 = u32::MAX;
const CLASSES: usize = 1 << SIZE_BITS;

pub(super) struct Arena {
    /// The first granule that was never handed out.
    next: u32,
    /// Granules that belong to arrays or to free ranges.
    touched: usize,
    /// Granules in free ranges.
    free: usize,
    /// First free range of each size class.
    lists: Box<[u32; CLASSES]>,
    /// Which classes have free ranges.
    filled: [u64; CLASSES / 64],
    /// For each granule, whether it is the first or the last one of a free range.
    edges: Vec<u64>,
    /// Arrays that are no longer referred to once the change in progress is published.
    retired: Vec<(u32, u32)>,
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            next: 0,
            touched: 0,
            free: 0,
            lists: Box::new([NONE; CLASSES]),
            filled: [0; CLASSES / 64],
            edges: Vec::new(),
            retired: Vec::new(),
        }
    }
}

impl Arena {
    /// An array with room for `len` words; their content is arbitrary.
    pub(super) fn alloc(&mut self, words: &Words, len: usize) -> Array {
        let size = Size::at_least(len.div_ceil(GRANULE) as u32);
        let at = match size.granules() {
            0 => 0,
            granules => self.take(words, granules),
        };
        Array { at, size }
    }

    /// An array of so many cache lines.
    pub(super) fn alloc_lines(&mut self, words: &Words, lines: usize) -> Array {
        let size = Size::at_least(lines as u32 * LINE_GRANULES);
        let granules = size.granules();
        let start = self.take(words, granules + LINE_GRANULES - 1);
        let at = start.next_multiple_of(LINE_GRANULES);
        let end = start + granules + LINE_GRANULES - 1;
        self.give(words, start, at - start);
        self.give(words, at + granules, end - at - granules);
        Array { at, size }
    }

    /// An array for `need` words that begins with the first `used` words of `array`: the same one if
    /// its size suits or can be cut, else another; a long one has an eighth more room, but not more than
    /// for `most` words. What is not used any more is retired.
    pub(super) fn fitted(
        &mut self,
        words: &Words,
        array: Array,
        used: usize,
        need: usize,
        most: usize,
    ) -> Array {
        let exact = Size::at_least(need.div_ceil(GRANULE) as u32);
        let (have, granules) = (array.size.granules(), exact.granules());
        if granules <= have {
            if have - granules <= granules / 8 {
                return array;
            }
            self.retired.push((array.at + granules, have - granules));
            let at = if granules == 0 { 0 } else { array.at };
            return Array { at, size: exact };
        }
        let fitted = self.alloc(words, need.max(most.min(need + need / 32 * 4)));
        let kept = used.min(need);
        copy(array.slice(words, kept), fitted.slice(words, kept));
        self.retire(array);
        fitted
    }

    /// Gives an array back at the next [`Self::reclaim`].
    pub(super) fn retire(&mut self, array: Array) {
        self.retired.push((array.at, array.size.granules()));
    }

    /// Frees what was retired. Only right after the change that cut it off was published: a reader
    /// that still looks at it then notices.
    pub(super) fn reclaim(&mut self, words: &Words) {
        while let Some((at, granules)) = self.retired.pop() {
            self.give(words, at, granules);
        }
    }

    /// Whether nothing should be added any more.
    pub(super) fn is_full(&self) -> bool {
        self.next > FULL
    }

    /// Bytes of arrays and of free ranges, with what tells them apart.
    pub(super) fn bytes(&self) -> usize {
        self.touched * GRANULE * size_of::<AtomicU64>() + self.edges.len() * size_of::<u64>()
    }

    /// Words in arrays.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        (self.touched - self.free) * GRANULE
    }

    /// A range of so many granules, not none.
    fn take(&mut self, words: &Words, granules: u32) -> u32 {
        let Some(class) = self.filled_from(Size::at_least(granules)) else {
            return self.fresh(words, granules);
        };
        let at = self.lists[class];
        let found = self.unlink(words, at);
        self.give(words, at + granules, found - granules);
        at
    }

    /// The first class from `size` on that has a free range.
    fn filled_from(&self, size: Size) -> Option<usize> {
        let from = usize::from(size.0);
        let mut mask = u64::MAX << (from % 64);
        for (index, filled) in self.filled.iter().enumerate().skip(from / 64) {
            if filled & mask != 0 {
                return Some(index * 64 + (filled & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// A range of granules that were never handed out.
    fn fresh(&mut self, words: &Words, granules: u32) -> u32 {
        let index = |granule: u32| granule as usize * GRANULE;
        loop {
            let end = (Words::chunk_end(index(self.next)) / GRANULE) as u32;
            words.grow(index(self.next), self::words);
            self.edges.resize((end as usize).div_ceil(64), 0);
            let at = self.next;
            if granules <= end - at {
                self.next += granules;
                self.touched += granules as usize;
                return at;
            }
            self.next = end;
            self.touched += (end - at) as usize;
            self.give(words, at, end - at);
        }
    }

    /// Makes a range free, together with its free neighbours.
    fn give(&mut self, words: &Words, mut at: u32, mut granules: u32) {
        if granules == 0 {
            return;
        }
        let starts = |granule: u32| Words::is_chunk_start(granule as usize * GRANULE);
        if !starts(at) && self.is_edge(at - 1) {
            let before = size_of_range(words, at - 1);
            at -= before;
            granules += self.unlink(words, at);
        }
        let end = at + granules;
        if end < self.next && !starts(end) && self.is_edge(end) {
            granules += self.unlink(words, end);
        }
        self.link(words, at, granules);
    }

    fn link(&mut self, words: &Words, at: u32, granules: u32) {
        let class = usize::from(Size::at_most(granules).0);
        let next = std::mem::replace(&mut self.lists[class], at);
        if next != NONE {
            let (after, _) = links(words, next);
            set_links(words, next, after, at);
        }
        set_links(words, at, next, NONE);
        for edge in [at, at + granules - 1] {
            word(words, edge, 1).store(u64::from(granules), Ordering::Relaxed);
            self.edges[edge as usize / 64] |= 1 << (edge % 64);
        }
        self.filled[class / 64] |= 1 << (class % 64);
        self.free += granules as usize;
    }

    /// Takes a free range out of its list; how large it is.
    fn unlink(&mut self, words: &Words, at: u32) -> u32 {
        let granules = size_of_range(words, at);
        let class = usize::from(Size::at_most(granules).0);
        let (next, previous) = links(words, at);
        if next != NONE {
            let (after, _) = links(words, next);
            set_links(words, next, after, previous);
        }
        if previous == NONE {
            self.lists[class] = next;
            if next == NONE {
                self.filled[class / 64] &= !(1 << (class % 64));
            }
        } else {
            let (_, before) = links(words, previous);
            set_links(words, previous, next, before);
        }
        for edge in [at, at + granules - 1] {
            self.edges[edge as usize / 64] &= !(1 << (edge % 64));
        }
        self.free -= granules as usize;
        granules
    }

    fn is_edge(&self, granule: u32) -> bool {
        self.edges[granule as usize / 64] >> (granule % 64) & 1 == 1
    }
}

fn word(words: &Words, granule: u32, offset: usize) -> &AtomicU64 {
    let word = words.get(granule as usize * GRANULE + offset);
    word.unwrap_or_else(|| unreachable!("the writer uses only granules it made"))
}

/// Granules of the free range with this edge.
fn size_of_range(words: &Words, edge: u32) -> u32 {
    word(words, edge, 1).load(Ordering::Relaxed) as u32
}

/// Next and previous free range.
fn links(words: &Words, at: u32) -> (u32, u32) {
    let links = word(words, at, 0).load(Ordering::Relaxed);
    ((links >> 32) as u32, links as u32)
}

fn set_links(words: &Words, at: u32, next: u32, previous: u32) {
    let links = u64::from(next) << 32 | u64::from(previous);
    word(words, at, 0).store(links, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_tight_and_ordered() {
        for granules in 0..100_000 {
            let (below, above) = (Size::at_most(granules), Size::at_least(granules));
            assert!(below.granules() <= granules && granules <= above.granules());
            assert!(above.granules() - granules <= granules / 32);
            assert_eq!(Size::at_most(above.granules()), above);
            assert!(Size(above.0 + 1).granules() > above.granules());
        }
    }

    #[test]
    fn arrays_do_not_overlap_and_all_of_them_come_back() {
        let memory = Words::new();
        let mut arena = Arena::default();
        let mut rng = fastrand::Rng::with_seed(5);
        let mut arrays: Vec<(Array, usize, u64)> = Vec::new();
        for round in 0..40_000 {
            if arrays.len() < 300 && rng.u32(..5) > 1 {
                let most = if rng.u32(..50) == 0 { 9_000 } else { 200 };
                let len = rng.usize(1..most);
                let array = arena.alloc(&memory, len);
                assert_eq!(Array::unpack(array.pack(len)), (array, len));
                assert!(array.capacity() >= len);
                let words = array.slice(&memory, array.capacity());
                assert_eq!(words.len(), array.capacity(), "in one chunk");
                words
                    .iter()
                    .for_each(|word| word.store(round, Ordering::Relaxed));
                arrays.push((array, len, round));
            } else if !arrays.is_empty() {
                let (array, len, mark) = arrays.swap_remove(rng.usize(..arrays.len()));
                let words = array.slice(&memory, array.capacity());
                assert!(
                    words
                        .iter()
                        .all(|word| word.load(Ordering::Relaxed) == mark)
                );
                if rng.bool() {
                    let need = rng.usize(..2 * len);
                    let fitted = arena.fitted(&memory, array, len, need, 300);
                    let words = fitted.slice(&memory, need.min(len));
                    assert!(
                        words
                            .iter()
                            .all(|word| word.load(Ordering::Relaxed) == mark)
                    );
                    assert!(fitted.capacity() >= need);
                    arena.retire(fitted);
                } else {
                    arena.retire(array);
                }
                arena.reclaim(&memory);
            }
        }
        for (array, ..) in arrays {
            arena.retire(array);
        }
        arena.reclaim(&memory);
        assert_eq!(arena.in_use(), 0);
        let chunks = (0..arena.next)
            .filter(|granule| Words::is_chunk_start(*granule as usize * GRANULE))
            .count();
        let edges: u32 = arena.edges.iter().map(|edges| edges.count_ones()).sum();
        assert_eq!(edges as usize, 2 * chunks, "one free range a chunk");
    }

    #[test]
    fn small_arrays_that_come_back_make_room_for_a_large_one() {
        let memory = Words::new();
        let mut arena = Arena::default();
        let small: Vec<Array> = (0..500).map(|_| arena.alloc(&memory, 7)).collect();
        let before = arena.bytes();
        small.into_iter().for_each(|array| arena.retire(array));
        arena.reclaim(&memory);
        arena.alloc(&memory, 3_900);
        assert_eq!(arena.bytes(), before);
    }

    #[test]
    fn lines_begin_where_cache_lines_do() {
        let memory = Words::new();
        let mut arena = Arena::default();
        for lines in 1..100 {
            arena.alloc(&memory, 2);
            let array = arena.alloc_lines(&memory, lines);
            let words = array.slice(&memory, lines * LINE_WORDS);
            assert_eq!(words.len(), lines * LINE_WORDS);
            assert_eq!(words.as_ptr().addr() % 64, 0);
        }
    }
}
