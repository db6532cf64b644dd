//! The writer: turns what owners say they hold into segments and spans.
//!
//! Knows which block follows which, from the order in runs. It trusts no input: whatever comes is
//! at worst a segment that no prompt leads to. Does not know where the input comes from.

use std::sync::Arc;

use flexkv_block::Location;

use super::blocks::{BlockTable, MAX_SEGMENT_LEN, Position};
use super::owners::{OwnerBook, OwnerId};
use super::store::Store;
use super::{Shared, SnapshotStats};

/// Blocks whose places are looked up together.
const AHEAD: usize = 16;
/// Segments that are swept for each that is looked at for joining, which takes longer.
const SWEPT_PER_JOIN: usize = 16;

/// The one writer of a snapshot. Readers see what it does at once and never wait for it.
pub struct SnapshotWriter {
    shared: Arc<Shared>,
    store: Store,
    blocks: BlockTable,
    owners: OwnerBook,
    /// The next segment to sweep.
    swept: u32,
    /// The next segment that may be joined to the one before it.
    joined: u32,
    /// Whether there may be something to join that the round before did not see.
    unsettled: bool,
    max_segment_len: usize,
}

impl SnapshotWriter {
    pub(super) fn new(shared: Arc<Shared>, max_segment_len: usize) -> Self {
        Self {
            store: Store::new(Arc::clone(&shared)),
            shared,
            blocks: BlockTable::new(),
            owners: OwnerBook::new(),
            swept: 0,
            joined: 0,
            unsettled: false,
            max_segment_len: max_segment_len.clamp(1, MAX_SEGMENT_LEN),
        }
    }

    /// A new owner, not live yet: what is added for it stays invisible until [`Self::set_live`].
    /// `None` when [`super::MAX_OWNERS`] are in use or wait to be swept.
    pub fn add_owner(&mut self) -> Option<OwnerId> {
        self.owners.open()
    }

    /// Makes all blocks of an owner visible or invisible at once.
    pub fn set_live(&mut self, owner: OwnerId, live: bool) {
        if self.owners.is_open(owner) {
            self.shared.live.set(owner, live);
        }
    }

    /// Forgets an owner: invisible at once; its memory comes back, and its id may be given out
    /// again, after [`Self::sweep`].
    pub fn remove_owner(&mut self, owner: OwnerId) {
        self.set_live(owner, false);
        self.owners.close(owner);
    }

    /// Sweeps removed owners out of up to `segments` segments, and joins a few that follow each other
    /// to one. True when no removed owner is left.
    pub fn sweep(&mut self, segments: usize) -> bool {
        for _ in 0..segments {
            if !self.owners.is_sweeping() && !self.owners.start_sweep() {
                break;
            }
            if self.swept < self.store.made() {
                let id = self.swept;
                self.store.drop_owners(id, &self.owners.swept());
                self.trim(id);
                self.swept += 1;
            }
            if self.swept == self.store.made() {
                self.owners.end_sweep();
                self.swept = 0;
            }
        }
        self.join_some(segments.div_ceil(SWEPT_PER_JOIN));
        self.publish_stats();
        self.owners.is_idle()
    }

    /// Goes on with a round over all segments, which joins those that it can; begins another one if
    /// segments came or became shorter meanwhile.
    fn join_some(&mut self, segments: usize) {
        for _ in 0..segments {
            if self.joined == 0 && !std::mem::take(&mut self.unsettled) {
                return;
            }
            if self.joined < self.store.made() {
                self.join(self.joined);
                self.joined += 1;
            }
            if self.joined == self.store.made() {
                self.joined = 0;
            }
        }
    }

    /// Moves a segment to the end of the one that it follows, if they have room in one and it is not
    /// much longer. So whenever a block moves, its segment has grown by a quarter or more, and no
    /// block moves often.
    fn join(&mut self, id: u32) {
        let back = self.store.segment(id);
        let Some(parent) = back.parent().filter(|_| back.len() > 0) else {
            return;
        };
        let Some(end) = self.find(parent).filter(|at| at.segment != id) else {
            return;
        };
        let front = self.store.segment(end.segment).len();
        let fits = front + back.len() <= self.max_segment_len && back.len() <= 4 * front;
        if end.offset + 1 != front || !fits {
            return;
        }
        for (offset, fingerprint) in back.fingerprints().from(0).enumerate() {
            let from = Position {
                segment: id,
                offset,
            };
            self.blocks
                .relocate(fingerprint, from, end.plus(1 + offset));
        }
        self.store.join(end.segment, id);
        self.unsettled = true;
    }

    /// Adds a run of consecutive blocks. `parent` is the fingerprint of the block before the run;
    /// it only saves memory and time, so it need not be known. Blocks that the owner already holds
    /// get the new location. Owners that are not (or no longer) there are ignored, and so is all that
    /// comes when the index has 64 GiB.
    pub fn add_run(
        &mut self,
        owner: OwnerId,
        parent: Option<u64>,
        fingerprints: &[u64],
        locations: &[Location],
    ) {
        if !self.owners.is_open(owner) || self.store.is_full() {
            return;
        }
        let len = fingerprints.len().min(locations.len());
        let (mut run, mut locations) = (&fingerprints[..len], &locations[..len]);
        let mut parent = parent;
        let mut before = parent.and_then(|parent| self.find(parent));
        while let Some(first) = run.first() {
            let known = self
                .find_near(before, *first)
                .map(|at| (at, self.common(at, run)));
            let Some((at, count)) = known.or_else(|| self.store_new(parent, before, run)) else {
                break;
            };
            self.store
                .cover(at.segment, owner, at.offset, &locations[..count]);
            if at.offset == 0 && parent.is_some() {
                self.note_parent(at.segment, parent);
            }
            before = Some(at.plus(count - 1));
            parent = run[..count].last().copied();
            run = &run[count..];
            locations = &locations[count..];
        }
        self.publish_stats();
    }

    /// Removes blocks of an owner. Those that it does not hold are ignored.
    pub fn remove(&mut self, owner: OwnerId, fingerprints: &[u64]) {
        if !self.owners.is_open(owner) {
            return;
        }
        let mut rest = fingerprints;
        let mut near = None;
        while let Some(first) = rest.first() {
            let Some(at) = self.find_near(near, *first) else {
                rest = &rest[1..];
                continue;
            };
            let count = self.common(at, rest);
            self.store
                .uncover(at.segment, owner, at.offset, at.offset + count);
            self.trim(at.segment);
            near = Some(at);
            rest = &rest[count..];
        }
        self.publish_stats();
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> SnapshotStats {
        SnapshotStats {
            segments: self.store.segments(),
            blocks: self.blocks.len(),
            replicas: self.store.replicas(),
            bytes: self.store.bytes() + self.blocks.bytes(),
        }
    }

    /// Words of memory in arrays that are in use.
    #[cfg(test)]
    pub(super) fn arena_words_in_use(&self) -> usize {
        self.store.words_in_use()
    }

    fn publish_stats(&self) {
        self.shared.stats.store(self.stats());
    }

    /// Whether the block at a place has this fingerprint.
    fn is_at(&self, at: Position, fingerprint: u64) -> bool {
        self.store.segment(at.segment).fingerprints().get(at.offset) == Some(fingerprint)
    }

    fn find(&self, fingerprint: u64) -> Option<Position> {
        self.blocks
            .find(fingerprint, |at| self.is_at(at, fingerprint))
    }

    /// Finds a block that most likely is next to another one.
    fn find_near(&self, near: Option<Position>, fingerprint: u64) -> Option<Position> {
        let after = near.map(|near| near.plus(1));
        let before = near.filter(|near| near.offset > 0).map(|near| Position {
            offset: near.offset - 1,
            ..near
        });
        let neighbours = after.into_iter().chain(before);
        let mut found = neighbours.filter(|at| self.is_at(*at, fingerprint));
        found.next().or_else(|| self.find(fingerprint))
    }

    /// How many blocks from a place on are the first of `run`.
    fn common(&self, at: Position, run: &[u64]) -> usize {
        let stored = self.store.segment(at.segment).fingerprints();
        let both = stored.from(at.offset).zip(run);
        both.take_while(|(stored, asked)| stored == *asked).count()
    }

    /// Notes which block a segment follows, if that was not known.
    fn note_parent(&mut self, id: u32, parent: Option<u64>) {
        let segment = self.store.segment(id);
        if segment.parent().is_none() {
            segment.set_parent(parent);
            self.unsettled = true;
        }
    }

    /// Stores the leading blocks of `run`, which nobody has and which follow `parent`: behind `before`
    /// if a segment with room ends there, else in a new segment. Returns where, and how many.
    fn store_new(
        &mut self,
        parent: Option<u64>,
        before: Option<Position>,
        run: &[u64],
    ) -> Option<(Position, usize)> {
        let tail = before.map(|before| before.plus(1)).filter(|next| {
            let len = self.store.segment(next.segment).len();
            next.offset == len && len < self.max_segment_len
        });
        let at = match tail {
            Some(at) => at,
            None => {
                self.unsettled = true;
                Position {
                    segment: self.store.create(parent)?,
                    offset: 0,
                }
            }
        };
        let room = self.max_segment_len - at.offset;
        let count = self.claim(at, &run[..run.len().min(room)]);
        self.store.append(at.segment, &run[..count]);
        Some((at, count))
    }

    /// Enters blocks in the table, to be stored from `at` on, up to the first that has a place
    /// already, be it in this run. Returns how many.
    fn claim(&mut self, at: Position, run: &[u64]) -> usize {
        for (index, fingerprint) in run.iter().enumerate() {
            if index.is_multiple_of(AHEAD) {
                let ahead = run[index..].iter().take(AHEAD);
                self.blocks.touch(ahead.copied());
            }
            let store = &self.store;
            let is = |other: Position| {
                let stored = if other.segment == at.segment && other.offset >= at.offset {
                    run.get(other.offset - at.offset).copied()
                } else {
                    store
                        .segment(other.segment)
                        .fingerprints()
                        .get(other.offset)
                };
                stored == Some(*fingerprint)
            };
            if !self.blocks.insert(*fingerprint, at.plus(index), is) {
                return index;
            }
        }
        run.len()
    }

    /// Cuts off the blocks at a segment's end that nobody holds.
    fn trim(&mut self, id: u32) {
        let held = self.store.held_len(id);
        let stored = self.store.segment(id).fingerprints();
        if held == stored.len() {
            return;
        }
        for (offset, fingerprint) in (held..).zip(stored.from(held)) {
            if (offset - held).is_multiple_of(AHEAD) {
                self.blocks.touch(stored.from(offset).take(AHEAD));
            }
            let at = Position {
                segment: id,
                offset,
            };
            self.blocks.remove(fingerprint, at);
        }
        self.store.cut(id, held);
        self.unsettled = true;
    }
}
