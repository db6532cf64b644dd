//! The table that leads readers from a block to the segment that begins with it.
//!
//! Many small shards, each an array of cache lines in the arena, which grows by a quarter: a larger
//! one is filled and published, and the old one given back at once. A reader that is still in the
//! old one may see anything there; it checks every segment that it is led to, and looks again if it
//! finds none and the shard was replaced meanwhile.
//!
//! A line is seven entries and a count of how many entries were pushed on past the line. Deleting
//! needs no tombstones and moves nothing, so a reader never misses an entry that stays. Entries are
//! hints: 32 bits of the fingerprint and a segment.

use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::{Arena, Array};
use super::memory::{LINE_WORDS, Words};

const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;
const ENTRIES: usize = LINE_WORDS - 1;
/// The word of a line that counts the entries pushed on past it.
const PASSED: usize = ENTRIES;
/// Entries for each of which there are `FULL.1` lines in a full shard: four fifths of seven a line.
const FULL: (usize, usize) = (28, 5);

/// The shards' arrays and numbers of lines.
pub(super) struct Heads {
    shards: [AtomicU64; SHARDS],
}

fn entry(fingerprint: u64, segment: u32) -> u64 {
    (fingerprint << 32) | (u64::from(segment) + 1)
}

/// Mixed, because tests and tools use small numbers.
#[inline]
fn hash(fingerprint: u64) -> u64 {
    fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline]
fn shard_of(fingerprint: u64) -> usize {
    (hash(fingerprint) >> (64 - SHARD_BITS)) as usize
}

/// A shard as it was at one moment.
#[derive(Clone, Copy)]
pub(super) struct Shard<'a> {
    word: u64,
    lines: &'a [[AtomicU64; LINE_WORDS]],
}

impl<'a> Shard<'a> {
    #[inline]
    fn new(word: u64, words: &'a Words) -> Self {
        let (array, lines) = Array::unpack(word);
        let (lines, _) = array.slice(words, lines * LINE_WORDS).as_chunks();
        Self { word, lines }
    }

    /// All lines from the home of a fingerprint on, each once.
    #[inline]
    fn probe(self, fingerprint: u64) -> impl Iterator<Item = &'a [AtomicU64; LINE_WORDS]> {
        let rest = u128::from(hash(fingerprint) << SHARD_BITS);
        let home = (rest * self.lines.len() as u128) >> 64;
        let (before, after) = self.lines.split_at(home as usize);
        after.iter().chain(before)
    }

    /// Segments that may begin with the block, most likely just the one that does.
    #[inline]
    pub(super) fn candidates(self, fingerprint: u64) -> impl Iterator<Item = u32> {
        let tag = fingerprint as u32;
        let mut last = false;
        self.probe(fingerprint)
            .take_while(move |line| {
                let go_on = !last;
                last = line[PASSED].load(Ordering::Relaxed) == 0;
                go_on
            })
            .flat_map(|line| &line[..ENTRIES])
            .filter_map(move |word| {
                let word = word.load(Ordering::Acquire);
                let segment = (word as u32).checked_sub(1)?;
                ((word >> 32) as u32 == tag).then_some(segment)
            })
    }

    /// Stores an entry in the first line with room; the lines before it count that it went past.
    fn put(self, fingerprint: u64, segment: u32) {
        for line in self.probe(fingerprint) {
            let mut words = line[..ENTRIES].iter();
            if let Some(word) = words.find(|word| word.load(Ordering::Relaxed) == 0) {
                word.store(entry(fingerprint, segment), Ordering::Release);
                return;
            }
            let count = line[PASSED].load(Ordering::Relaxed);
            line[PASSED].store(count + 1, Ordering::Relaxed);
        }
    }
}

impl Heads {
    pub(super) fn new() -> Self {
        Self {
            shards: [const { AtomicU64::new(0) }; SHARDS],
        }
    }

    /// The shard of a fingerprint.
    #[inline]
    pub(super) fn shard<'a>(&self, fingerprint: u64, words: &'a Words) -> Shard<'a> {
        let word = self.shards[shard_of(fingerprint)].load(Ordering::Acquire);
        Shard::new(word, words)
    }

    /// Whether the fingerprint's shard is still this one, so that what was not found is not there.
    #[inline]
    pub(super) fn is_current(&self, fingerprint: u64, shard: Shard<'_>) -> bool {
        self.shards[shard_of(fingerprint)].load(Ordering::Acquire) == shard.word
    }
}

/// The writer's half: it alone changes the table.
pub(super) struct HeadsWriter {
    /// Entries of each shard.
    used: Box<[u32; SHARDS]>,
}

impl HeadsWriter {
    pub(super) fn new() -> Self {
        Self {
            used: Box::new([0; SHARDS]),
        }
    }

    /// Adds a segment; `head_of` tells the first fingerprint of the segments there are.
    pub(super) fn insert(
        &mut self,
        heads: &Heads,
        (words, arena): (&Words, &mut Arena),
        fingerprint: u64,
        segment: u32,
        head_of: impl Fn(u32) -> u64,
    ) {
        let number = shard_of(fingerprint);
        let used = &mut self.used[number];
        *used += 1;
        let mut shard = heads.shard(fingerprint, words);
        if *used as usize * FULL.1 > shard.lines.len() * FULL.0 {
            let lines = shard.lines.len();
            let word = resized(shard, lines + (lines / 4).max(1), (words, arena), head_of);
            heads.shards[number].store(word, Ordering::Release);
            arena.retire(Array::unpack(shard.word).0);
            arena.reclaim(words);
            shard = Shard::new(word, words);
        }
        shard.put(fingerprint, segment);
    }

    /// Takes out a segment that was added under this fingerprint.
    pub(super) fn remove(
        &mut self,
        heads: &Heads,
        (words, arena): (&Words, &mut Arena),
        fingerprint: u64,
        segment: u32,
    ) {
        let wanted = entry(fingerprint, segment);
        let shard = heads.shard(fingerprint, words);
        let found = shard.probe(fingerprint).position(|line| {
            let mut words = line[..ENTRIES].iter();
            let word = words.find(|word| word.load(Ordering::Relaxed) == wanted);
            word.inspect(|word| word.store(0, Ordering::Release))
                .is_some()
        });
        let Some(passed) = found else {
            debug_assert!(false, "a segment that was never added");
            return;
        };
        for line in shard.probe(fingerprint).take(passed) {
            let count = line[PASSED].load(Ordering::Relaxed);
            line[PASSED].store(count - 1, Ordering::Relaxed);
        }
        let number = shard_of(fingerprint);
        self.used[number] -= 1;
        if self.used[number] == 0 {
            heads.shards[number].store(0, Ordering::Release);
            arena.retire(Array::unpack(shard.word).0);
            arena.reclaim(words);
        }
    }
}

/// A copy of a shard with another number of lines: its word.
fn resized(
    shard: Shard<'_>,
    lines: usize,
    (words, arena): (&Words, &mut Arena),
    head_of: impl Fn(u32) -> u64,
) -> u64 {
    let array = arena.alloc_lines(words, lines);
    for word in array.slice(words, lines * LINE_WORDS) {
        word.store(0, Ordering::Relaxed);
    }
    let word = array.pack(lines);
    let larger = Shard::new(word, words);
    for line in shard.lines {
        for word in &line[..ENTRIES] {
            if let Some(segment) = (word.load(Ordering::Relaxed) as u32).checked_sub(1) {
                larger.put(head_of(segment), segment);
            }
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_tags_are_all_candidates() {
        let (heads, words) = (Heads::new(), Words::new());
        let mut arena = Arena::default();
        let mut writer = HeadsWriter::new();
        let fingerprint = |i: u32| (u64::from(i) << 32) | 7;
        let found = |i: u32| {
            let shard = heads.shard(fingerprint(i), &words);
            assert!(heads.is_current(fingerprint(i), shard));
            shard.candidates(fingerprint(i)).any(|segment| segment == i)
        };
        for i in 0..20_000 {
            let memory = (&words, &mut arena);
            writer.insert(&heads, memory, fingerprint(i), i, fingerprint);
        }
        assert!((0..20_000).all(found));
        for i in 0..20_000 {
            writer.remove(&heads, (&words, &mut arena), fingerprint(i), i);
            assert!(!found(i));
        }
        assert_eq!(arena.in_use(), 0);
    }
}
