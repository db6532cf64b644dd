//! The table that leads readers from a block to the segment that begins with it.
//!
//! Lines of seven entries and a count of how many entries were pushed on past the line; deleting
//! needs no tombstones and moves nothing, so a reader never misses an entry that stays. The table
//! grows by publishing one of twice the size; the old ones remain for readers that are in them and
//! together are no larger than the newest. Entries are hints: 32 bits of the fingerprint and a
//! segment, which the reader must check.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::memory::{Line, lines};

/// Lines of the first table; table `k` has this many times `2^k`.
const FIRST_LINES: usize = 16;
const TABLES: usize = 32;
const ENTRIES: usize = 7;
/// The word of a line that counts the entries pushed on past it.
const PASSED: usize = 7;

pub(super) struct Heads {
    tables: [OnceLock<Box<[Line]>>; TABLES],
    current: AtomicUsize,
}

fn entry(fingerprint: u64, segment: u32) -> u64 {
    (fingerprint << 32) | (u64::from(segment) + 1)
}

/// The line that a fingerprint belongs to. Mixed, because tests and tools use small numbers.
#[inline]
fn home(table: &[Line], fingerprint: u64) -> usize {
    let hash = fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(hash) * table.len() as u128) >> 64) as usize
}

/// All lines from the home of a fingerprint on, each once.
#[inline]
fn probe(table: &[Line], fingerprint: u64) -> impl Iterator<Item = &Line> {
    let (before, after) = table.split_at(home(table, fingerprint));
    after.iter().chain(before)
}

impl Heads {
    pub(super) fn new() -> Self {
        let heads = Self {
            tables: [const { OnceLock::new() }; TABLES],
            current: AtomicUsize::new(0),
        };
        heads.table(0);
        heads
    }

    /// Table number `k`, made if there is none yet.
    fn table(&self, k: usize) -> &[Line] {
        self.tables[k].get_or_init(|| lines(FIRST_LINES << k))
    }

    /// Segments that may begin with the block, most likely just the one that does.
    #[inline]
    pub(super) fn candidates(&self, fingerprint: u64) -> impl Iterator<Item = u32> {
        let current = self.current.load(Ordering::Acquire);
        let table = self.tables[current].get().map_or(&[][..], |table| table);
        let tag = fingerprint as u32;
        let mut last = false;
        probe(table, fingerprint)
            .take_while(move |line| {
                let go_on = !last;
                last = line.0[PASSED].load(Ordering::Relaxed) == 0;
                go_on
            })
            .flat_map(|line| &line.0[..ENTRIES])
            .filter_map(move |word| {
                let word = word.load(Ordering::Acquire);
                let segment = (word as u32).checked_sub(1)?;
                ((word >> 32) as u32 == tag).then_some(segment)
            })
    }
}

/// The writer's half: it alone changes the table.
pub(super) struct HeadsWriter {
    len: usize,
    bytes: usize,
}

impl HeadsWriter {
    pub(super) fn new() -> Self {
        Self {
            len: 0,
            bytes: FIRST_LINES * size_of::<Line>(),
        }
    }

    /// Adds a segment; `head_of` tells the first fingerprint of the segments there are.
    pub(super) fn insert(
        &mut self,
        heads: &Heads,
        fingerprint: u64,
        segment: u32,
        head_of: impl Fn(u32) -> u64,
    ) {
        let mut current = heads.current.load(Ordering::Relaxed);
        if self.len >= heads.table(current).len() * 5 {
            let larger = heads.table(current + 1);
            for line in heads.table(current) {
                for word in &line.0[..ENTRIES] {
                    if let Some(segment) = (word.load(Ordering::Relaxed) as u32).checked_sub(1) {
                        put(larger, head_of(segment), segment);
                    }
                }
            }
            self.bytes += size_of_val(larger);
            current += 1;
            heads.current.store(current, Ordering::Release);
        }
        put(heads.table(current), fingerprint, segment);
        self.len += 1;
    }

    /// Takes out a segment that was added under this fingerprint.
    pub(super) fn remove(&mut self, heads: &Heads, fingerprint: u64, segment: u32) {
        let wanted = entry(fingerprint, segment);
        let table = heads.table(heads.current.load(Ordering::Relaxed));
        let found = probe(table, fingerprint).position(|line| {
            let mut words = line.0[..ENTRIES].iter();
            let word = words.find(|word| word.load(Ordering::Relaxed) == wanted);
            word.inspect(|word| word.store(0, Ordering::Release))
                .is_some()
        });
        let Some(passed) = found else {
            debug_assert!(false, "a segment that was never added");
            return;
        };
        for line in probe(table, fingerprint).take(passed) {
            let count = line.0[PASSED].load(Ordering::Relaxed);
            line.0[PASSED].store(count - 1, Ordering::Relaxed);
        }
        self.len -= 1;
    }

    /// Bytes of all tables.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Stores an entry in the first line with room; the lines before it count that it went past.
fn put(table: &[Line], fingerprint: u64, segment: u32) {
    for line in probe(table, fingerprint) {
        let mut words = line.0[..ENTRIES].iter();
        if let Some(word) = words.find(|word| word.load(Ordering::Relaxed) == 0) {
            word.store(entry(fingerprint, segment), Ordering::Release);
            return;
        }
        let count = line.0[PASSED].load(Ordering::Relaxed);
        line.0[PASSED].store(count + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_tags_are_all_candidates() {
        let heads = Heads::new();
        let mut writer = HeadsWriter::new();
        let fingerprint = |i: u32| (u64::from(i) << 32) | 7;
        for i in 0..2_000 {
            writer.insert(&heads, fingerprint(i), i, fingerprint);
        }
        for i in 0..2_000 {
            assert!(heads.candidates(fingerprint(i)).any(|segment| segment == i));
        }
        for i in 0..2_000 {
            writer.remove(&heads, fingerprint(i), i);
            assert!(!heads.candidates(fingerprint(i)).any(|segment| segment == i));
        }
        assert_eq!(writer.len, 0);
        let current = heads.current.load(Ordering::Relaxed);
        for line in heads.table(current) {
            assert!(line.0.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }
}
