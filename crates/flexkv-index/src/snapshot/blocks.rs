//! The writer's table of all blocks: where in which segment a fingerprint is.
//!
//! Only the writer uses it, so it may move its entries as it likes. An entry is 48 bits and holds 13
//! bits of the fingerprint's hash, in addition to its shard; whoever asks compares the fingerprint
//! in the segment. Many small shards that grow by a sixteenth, so that none takes long and few slots
//! are empty.

use std::hint::black_box;

/// Largest number of blocks in a segment that the table can express.
pub(super) const MAX_SEGMENT_LEN: usize = 1 << OFFSET_BITS;
/// Segments that the table can tell apart.
pub(super) const MAX_SEGMENTS: u32 = (1 << SEGMENT_BITS) - 1;

const OFFSET_BITS: u32 = 9;
const SEGMENT_BITS: u32 = 26;
const TAG_BITS: u32 = 48 - SEGMENT_BITS - OFFSET_BITS;
const SHARD_BITS: u32 = 12;
const SHARDS: usize = 1 << SHARD_BITS;
/// The most slots of a hundred that are used.
const FULL_PERCENT: usize = 90;

/// A block's place: a segment and the offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: usize,
}

impl Position {
    /// The place this many blocks on in the same segment.
    pub(super) fn plus(self, blocks: usize) -> Self {
        Self {
            offset: self.offset + blocks,
            ..self
        }
    }
}

/// The lowest, middle and highest part of an entry. All zeros is a free slot.
type Slot = [u16; 3];
const FREE: Slot = [0; 3];

fn slot(tag: u64, at: Position) -> Slot {
    let entry =
        (tag << (48 - TAG_BITS)) | (u64::from(at.segment) + 1) << OFFSET_BITS | at.offset as u64;
    [entry as u16, (entry >> 16) as u16, (entry >> 32) as u16]
}

#[inline]
fn tag(slot: Slot) -> u64 {
    u64::from(slot[2] >> (16 - TAG_BITS))
}

fn position(slot: Slot) -> Position {
    let entry = u64::from(slot[0]) | u64::from(slot[1]) << 16 | u64::from(slot[2]) << 32;
    let segment = (entry >> OFFSET_BITS) as u32 & MAX_SEGMENTS;
    Position {
        segment: segment.wrapping_sub(1),
        offset: entry as usize % MAX_SEGMENT_LEN,
    }
}

/// Open addressing: entries in the order of their tags, none before its home, and no free slot
/// between an entry and its home. The last slot is always free, which ends every search.
#[derive(Clone, Default)]
struct Shard {
    slots: Box<[Slot]>,
    homes: u32,
    used: u32,
}

impl Shard {
    /// Where the search for a tag starts.
    #[inline]
    fn home(&self, tag: u64) -> usize {
        (tag as usize * self.homes as usize) >> TAG_BITS
    }

    /// The slot of the entry with this tag that `is` accepts, or else where it belongs.
    #[inline]
    fn search(&self, wanted: u64, mut is: impl FnMut(Slot) -> bool) -> Result<usize, usize> {
        let home = self.home(wanted);
        for (index, found) in self.slots.iter().enumerate().skip(home) {
            if *found == FREE || tag(*found) > wanted {
                return Err(index);
            }
            if tag(*found) == wanted && is(*found) {
                return Ok(index);
            }
        }
        Err(self.slots.len())
    }

    /// Gives the shard room for `homes` entries and a few that are pushed past the end.
    fn resize(&mut self, homes: usize) {
        let mut larger = Self {
            slots: vec![FREE; homes + homes / 64 + 6].into_boxed_slice(),
            homes: homes as u32,
            used: self.used,
        };
        let mut next = 0;
        for found in self.slots.iter().filter(|found| **found != FREE) {
            next = larger.home(tag(*found)).max(next);
            if next + 2 >= larger.slots.len() {
                // Many equal tags: no size of the table would help them, more room at its end does.
                let mut slots = std::mem::take(&mut larger.slots).into_vec();
                slots.resize(next + 3 + next / 16, FREE);
                larger.slots = slots.into_boxed_slice();
            }
            larger.slots[next] = *found;
            next += 1;
        }
        *self = larger;
    }

    /// Puts an entry where it belongs, and moves those behind it up to the next free slot.
    fn put(&mut self, at: usize, entry: Slot) -> bool {
        let run = self.slots[at..].iter().position(|found| *found == FREE);
        let Some(free) = run.map(|run| at + run) else {
            return false;
        };
        if free + 1 >= self.slots.len() {
            return false;
        }
        self.slots.copy_within(at..free, at + 1);
        self.slots[at] = entry;
        true
    }

    /// Frees a slot and moves back the entries that were pushed past it.
    fn clear(&mut self, free: usize) {
        let behind = &self.slots[free + 1..];
        let stays = |(index, found): (usize, &Slot)| {
            *found == FREE || self.home(tag(*found)) > free + index
        };
        let run = behind.iter().enumerate().position(stays);
        let run = run.unwrap_or(behind.len());
        self.slots.copy_within(free + 1..free + 1 + run, free);
        self.slots[free + run] = FREE;
    }
}

pub(super) struct BlockTable {
    shards: Vec<Shard>,
    len: usize,
    slots: usize,
}

/// Shard and tag of a fingerprint. Mixed, because tests and tools use small numbers.
fn address(fingerprint: u64) -> (usize, u64) {
    let hash = fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let shard = (hash >> (64 - SHARD_BITS)) as usize;
    let tag = (hash >> (64 - SHARD_BITS - TAG_BITS)) & ((1 << TAG_BITS) - 1);
    (shard, tag)
}

impl BlockTable {
    pub(super) fn new() -> Self {
        Self {
            shards: vec![Shard::default(); SHARDS],
            len: 0,
            slots: 0,
        }
    }

    /// The block's place; `is` says whether the block at a place is the one.
    pub(super) fn find(&self, fingerprint: u64, is: impl Fn(Position) -> bool) -> Option<Position> {
        let (shard, tag) = address(fingerprint);
        let shard = &self.shards[shard];
        let found = shard.search(tag, |slot| is(position(slot))).ok()?;
        Some(position(shard.slots[found]))
    }

    /// Adds a block unless it is there already, and says whether it was added.
    pub(super) fn insert(
        &mut self,
        fingerprint: u64,
        at: Position,
        is: impl Fn(Position) -> bool,
    ) -> bool {
        let (shard, tag) = address(fingerprint);
        let shard = &mut self.shards[shard];
        let Err(mut place) = shard.search(tag, |slot| is(position(slot))) else {
            return false;
        };
        let full = (shard.used as usize + 1) * 100 > shard.homes as usize * FULL_PERCENT;
        if full || !shard.put(place, slot(tag, at)) {
            self.slots -= shard.slots.len();
            shard.resize(shard.homes as usize + shard.homes as usize / 16 + 4);
            self.slots += shard.slots.len();
            place = shard.search(tag, |_| false).unwrap_or_else(|place| place);
            let put = shard.put(place, slot(tag, at));
            debug_assert!(put, "a shard that has just grown has room");
        }
        shard.used += 1;
        self.len += 1;
        true
    }

    /// Removes the block that was added at this place.
    pub(super) fn remove(&mut self, fingerprint: u64, at: Position) {
        let (shard, tag) = address(fingerprint);
        let shard = &mut self.shards[shard];
        let wanted = slot(tag, at);
        let Ok(found) = shard.search(tag, |entry| entry == wanted) else {
            return;
        };
        shard.clear(found);
        shard.used -= 1;
        self.len -= 1;
        if shard.used * 2 < shard.homes {
            self.slots -= shard.slots.len();
            if shard.used == 0 {
                *shard = Shard::default();
            } else {
                shard.resize(shard.used as usize * 5 / 4 + 4);
            }
            self.slots += shard.slots.len();
        }
    }

    /// Notes that the block at `from` is now at `to`.
    pub(super) fn relocate(&mut self, fingerprint: u64, from: Position, to: Position) {
        let (shard, tag) = address(fingerprint);
        let shard = &mut self.shards[shard];
        let wanted = slot(tag, from);
        if let Ok(found) = shard.search(tag, |entry| entry == wanted) {
            shard.slots[found] = slot(tag, to);
        }
    }

    /// Loads the lines where these fingerprints belong, all at once instead of one after the other.
    pub(super) fn touch(&self, fingerprints: impl IntoIterator<Item = u64>) {
        let mut sum = 0u16;
        for fingerprint in fingerprints {
            let (shard, tag) = address(fingerprint);
            let shard = &self.shards[shard];
            let slot = shard.slots.get(shard.home(tag)).unwrap_or(&FREE);
            sum = sum.wrapping_add(slot[0]);
        }
        black_box(sum);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots * size_of::<Slot>() + SHARDS * size_of::<Shard>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Fingerprints that differ in what the table keeps, and some that do not.
    fn fingerprint(number: u64) -> u64 {
        if number.is_multiple_of(3) {
            number << 40
        } else {
            number
        }
    }

    #[test]
    fn agrees_with_a_plain_map() {
        let mut table = BlockTable::new();
        let mut map: HashMap<u64, Position> = HashMap::new();
        let mut rng = fastrand::Rng::with_seed(9);
        for round in 0..400_000u32 {
            let block = fingerprint(rng.u64(..60_000));
            let at = Position {
                segment: round,
                offset: rng.usize(..MAX_SEGMENT_LEN),
            };
            let known = map.get(&block).copied();
            let is = |other| Some(other) == known;
            assert_eq!(table.find(block, is), known);
            match rng.u32(..if round < 200_000 { 3 } else { 7 }) {
                0 | 1 => {
                    assert_eq!(table.insert(block, at, is), known.is_none());
                    map.entry(block).or_insert(at);
                }
                2 => {
                    if let Some(known) = known {
                        table.relocate(block, known, at);
                        map.insert(block, at);
                    }
                }
                _ => {
                    if let Some(known) = map.remove(&block) {
                        table.remove(block, known);
                    }
                }
            }
            assert_eq!(table.len(), map.len());
        }
        for (block, at) in map {
            assert_eq!(table.find(block, |other| other == at), Some(at));
            table.remove(block, at);
        }
        assert_eq!((table.len(), table.slots), (0, 0));
    }

    #[test]
    fn any_number_of_equal_tags_fits() {
        let mut table = BlockTable::new();
        for offset in 0..MAX_SEGMENT_LEN {
            let at = Position { segment: 7, offset };
            assert!(table.insert(1 << 63, at, |other| other == at));
        }
        for offset in 0..MAX_SEGMENT_LEN {
            let at = Position { segment: 7, offset };
            assert_eq!(table.find(1 << 63, |other| other == at), Some(at));
        }
    }
}
