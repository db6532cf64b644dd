//! The writer's table of all blocks: where in which segment a fingerprint is.
//!
//! Only the writer uses it, so it may move its entries as it likes. An entry holds 22 bits of the
//! fingerprint's hash; whoever asks compares the fingerprint in the segment. Many small shards, so
//! that growing one takes microseconds.

use std::hint::black_box;

/// Largest number of blocks in a segment that the table can express.
pub(super) const MAX_SEGMENT_LEN: usize = 1 << OFFSET_BITS;

const OFFSET_BITS: u32 = 10;
const SEGMENT_BITS: u32 = 32;
const TAG_BITS: u32 = 64 - SEGMENT_BITS - OFFSET_BITS;
const SHARDS: usize = 256;
const FIRST_SLOTS: usize = 8;

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

/// Open addressing with linear probing: 0 is a free slot.
#[derive(Clone, Default)]
struct Shard {
    slots: Vec<u64>,
    used: usize,
}

pub(super) struct BlockTable {
    shards: Vec<Shard>,
    len: usize,
    slots: usize,
}

/// Shard and tag of a fingerprint. Mixed, because tests and tools use small numbers.
fn address(fingerprint: u64) -> (usize, u64) {
    let hash = fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let shard = (hash >> 56) as usize % SHARDS;
    (shard, (hash >> (56 - TAG_BITS)) & ((1 << TAG_BITS) - 1))
}

fn entry(tag: u64, at: Position) -> u64 {
    (tag << (64 - TAG_BITS)) | ((u64::from(at.segment) + 1) << OFFSET_BITS) | at.offset as u64
}

fn tag(entry: u64) -> u64 {
    entry >> (64 - TAG_BITS)
}

fn position(entry: u64) -> Position {
    Position {
        segment: ((entry >> OFFSET_BITS) as u32).wrapping_sub(1),
        offset: entry as usize % MAX_SEGMENT_LEN,
    }
}

impl Shard {
    /// Where the probe for a tag starts.
    fn home(&self, tag: u64) -> usize {
        (tag as usize * self.slots.len()) >> TAG_BITS
    }

    fn after(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }

    /// The slot of the entry that `is` accepts, or else the free slot where it belongs.
    fn slot(&self, tag: u64, mut is: impl FnMut(u64) -> bool) -> Result<usize, usize> {
        let mut slot = self.home(tag);
        loop {
            match self.slots[slot] {
                0 => return Err(slot),
                found if found >> (64 - TAG_BITS) == tag && is(found) => return Ok(slot),
                _ => slot = self.after(slot),
            }
        }
    }

    fn grow(&mut self) {
        let len = (2 * self.slots.len()).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![0; len]);
        for found in old.into_iter().filter(|found| *found != 0) {
            if let Err(slot) = self.slot(tag(found), |_| false) {
                self.slots[slot] = found;
            }
        }
    }

    /// Frees a slot and moves up the entries that were pushed past it.
    fn clear(&mut self, mut free: usize) {
        let mask = self.slots.len() - 1;
        let mut slot = free;
        loop {
            slot = self.after(slot);
            let found = self.slots[slot];
            if found == 0 {
                break;
            }
            let distance = slot.wrapping_sub(self.home(tag(found))) & mask;
            if distance >= slot.wrapping_sub(free) & mask {
                self.slots[free] = found;
                free = slot;
            }
        }
        self.slots[free] = 0;
    }
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
        if shard.slots.is_empty() {
            return None;
        }
        let slot = shard.slot(tag, |entry| is(position(entry))).ok()?;
        Some(position(shard.slots[slot]))
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
        if (shard.used + 1) * 16 > shard.slots.len() * 13 {
            self.slots -= shard.slots.len();
            shard.grow();
            self.slots += shard.slots.len();
        }
        let Err(slot) = shard.slot(tag, |entry| is(position(entry))) else {
            return false;
        };
        shard.slots[slot] = entry(tag, at);
        shard.used += 1;
        self.len += 1;
        true
    }

    /// Removes the block that was added at this place.
    pub(super) fn remove(&mut self, fingerprint: u64, at: Position) {
        let (shard, tag) = address(fingerprint);
        let shard = &mut self.shards[shard];
        let wanted = entry(tag, at);
        if shard.slots.is_empty() {
            return;
        }
        match shard.slot(tag, |entry| entry == wanted) {
            Ok(slot) => shard.clear(slot),
            Err(_) => return,
        }
        shard.used -= 1;
        self.len -= 1;
    }

    /// Loads the lines where these fingerprints belong, all at once instead of one after the other.
    pub(super) fn touch(&self, fingerprints: impl IntoIterator<Item = u64>) {
        let mut sum = 0u64;
        for fingerprint in fingerprints {
            let (shard, tag) = address(fingerprint);
            let shard = &self.shards[shard];
            sum = sum.wrapping_add(shard.slots.get(shard.home(tag)).copied().unwrap_or(0));
        }
        black_box(sum);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots * size_of::<u64>()
    }
}
