//! What changes under one lock: the blocks held here, their place in the index, and the log of
//! changes. Lookups never take this lock. Does no I/O.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, Tier};
use flexkv_index::{Follower, OwnerId, Publisher, Residency, SnapshotWriter};
use flexkv_ports::{BlockTier, Eviction, ReadSlot, RemovalFeed, WriteSlot};
use tokio::sync::Notify;

use crate::counters::Counters;

/// How many pinned blocks an eviction looks past before it gives up.
const PINNED_SKIPPED_MAX: usize = 4096;

/// The state behind the lock.
pub(crate) struct State {
    pub(crate) residency: Residency,
    pub(crate) publisher: Option<Publisher>,
    pub(crate) follower: Follower,
    pub(crate) writer: SnapshotWriter,
    /// The follower's count of changes when the table of peers was made.
    pub(crate) peers_shown: u64,
    /// What was dropped but could not be freed because it was being read.
    pub(crate) doomed: Vec<Location>,
    /// How often everything was dropped.
    pub(crate) resets: u64,
}

/// A run of blocks that were committed one after the other.
struct Run {
    parent: Option<BlockKey>,
    fingerprints: Vec<u64>,
    locations: Vec<Location>,
}

/// The lock, and what is done under it.
pub(crate) struct Core {
    state: Mutex<State>,
    own: OwnerId,
    /// Wakes the task that publishes.
    pub(crate) changed: Notify,
    /// Tells engines what is no longer here.
    pub(crate) removals: RemovalFeed,
}

impl Core {
    pub(crate) fn new(state: State, own: OwnerId) -> Self {
        Self {
            state: Mutex::new(state),
            own,
            changed: Notify::new(),
            removals: RemovalFeed::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this node holds each of `keys`.
    pub(crate) fn find(&self, keys: &[BlockKey]) -> Vec<Option<Location>> {
        let state = self.lock();
        keys.iter()
            .map(|key| state.residency.get_in(*key, Tier::Host))
            .collect()
    }

    /// Marks a prefix as used just now.
    pub(crate) fn touch(&self, keys: &[BlockKey]) {
        self.lock().residency.touch(keys);
    }

    /// Takes `count` slots to fill, evicting what was used least recently. Fewer if the rest is in
    /// use.
    pub(crate) fn reserve(
        &self,
        now: Duration,
        count: usize,
        tier: &dyn BlockTier,
        counters: &Counters,
    ) -> Vec<WriteSlot> {
        let mut slots: Vec<WriteSlot> = std::iter::from_fn(|| tier.reserve()).take(count).collect();
        if slots.len() < count {
            self.free_doomed(tier);
        }
        while slots.len() < count {
            let evicted = self.evict(now, count - slots.len(), tier);
            counters.evicted_blocks.increment(evicted as u64);
            let before = slots.len();
            slots.extend(std::iter::from_fn(|| tier.reserve()).take(count - before));
            if evicted == 0 || slots.len() == before {
                break;
            }
        }
        slots
    }

    /// Evicts up to `count` blocks; says how many.
    fn evict(&self, now: Duration, count: usize, tier: &dyn BlockTier) -> usize {
        let mut state = self.lock();
        let mut gone: Vec<(BlockKey, Location)> = Vec::with_capacity(count);
        let mut pinned = 0;
        for (key, location) in state.residency.victims(Tier::Host) {
            match tier.evict(location) {
                Eviction::Done | Eviction::Stale => gone.push((key, location)),
                Eviction::Pinned => pinned += 1,
            }
            if gone.len() == count || pinned == PINNED_SKIPPED_MAX {
                break;
            }
        }
        self.forget(&mut state, now, &gone);
        gone.len()
    }

    /// Drops every block; says how many. The slots of those that are being read are freed later.
    pub(crate) fn reset(&self, tier: &dyn BlockTier) -> usize {
        let mut state = self.lock();
        let all: Vec<(BlockKey, Location)> = state.residency.iter().collect();
        let fingerprints: Vec<u64> = all.iter().map(|(key, _)| key.fingerprint()).collect();
        state.residency = Residency::default();
        state.writer.remove(self.own, &fingerprints);
        for (_, location) in &all {
            if tier.evict(*location) == Eviction::Pinned {
                state.doomed.push(*location);
            }
        }
        state.resets += 1;
        self.removals.removed(all.iter().map(|(key, _)| *key));
        // A new log says that there is nothing in fewer bytes than a removal of each block.
        if let Some(publisher) = &mut state.publisher {
            publisher.republish();
            self.changed.notify_one();
        }
        all.len()
    }

    /// How often everything was dropped.
    pub(crate) fn resets(&self) -> u64 {
        self.lock().resets
    }

    /// Frees what a reset left because it was being read, as far as it no longer is.
    pub(crate) fn free_doomed(&self, tier: &dyn BlockTier) {
        let doomed = &mut self.lock().doomed;
        doomed.retain(|location| tier.evict(*location) == Eviction::Pinned);
    }

    /// Drops a block whose bytes turned out wrong. If others read it, its slot is freed later.
    pub(crate) fn drop_corrupt(&self, now: Duration, slot: ReadSlot, tier: &dyn BlockTier) {
        let (key, location) = (slot.key(), slot.location());
        drop(slot);
        let mut state = self.lock();
        if state.residency.get_in(key, location.tier) == Some(location) {
            if tier.evict(location) == Eviction::Pinned {
                state.doomed.push(location);
            }
            self.forget(&mut state, now, &[(key, location)]);
        }
    }

    fn forget(&self, state: &mut State, now: Duration, gone: &[(BlockKey, Location)]) {
        if gone.is_empty() {
            return;
        }
        let fingerprints: Vec<u64> = gone.iter().map(|(key, _)| key.fingerprint()).collect();
        for (key, location) in gone {
            state.residency.remove(*key, *location);
        }
        self.removals.removed(gone.iter().map(|(key, _)| *key));
        state.writer.remove(self.own, &fingerprints);
        if let Some(publisher) = &mut state.publisher {
            publisher.removed(now, &fingerprints);
            self.changed.notify_one();
        }
    }

    /// Makes filled slots blocks of this node: `filled[i]` becomes block `keys[index]`. A block that
    /// is here already keeps its place and the slot is freed. Says where each new one is.
    pub(crate) fn commit(
        &self,
        now: Duration,
        keys: &[BlockKey],
        filled: Vec<(usize, WriteSlot, Checksum)>,
        tier: &dyn BlockTier,
    ) -> Vec<(usize, Location)> {
        self.commit_in(&mut self.lock(), now, keys, filled, tier)
    }

    /// The same for blocks of peers, which are not wanted if everything was dropped since `resets`
    /// was read.
    pub(crate) fn commit_fetched(
        &self,
        now: Duration,
        keys: &[BlockKey],
        filled: Vec<(usize, WriteSlot, Checksum)>,
        tier: &dyn BlockTier,
        resets: u64,
    ) -> Vec<(usize, Location)> {
        let mut state = self.lock();
        if state.resets != resets {
            return Vec::new();
        }
        self.commit_in(&mut state, now, keys, filled, tier)
    }

    fn commit_in(
        &self,
        state: &mut State,
        now: Duration,
        keys: &[BlockKey],
        filled: Vec<(usize, WriteSlot, Checksum)>,
        tier: &dyn BlockTier,
    ) -> Vec<(usize, Location)> {
        let mut run: Option<(usize, Run)> = None;
        let mut new = Vec::with_capacity(filled.len());
        for (index, slot, checksum) in filled {
            let key = keys[index];
            if state.residency.get_in(key, Tier::Host).is_some() {
                continue;
            }
            let parent = index.checked_sub(1).map(|before| keys[before]);
            let location = tier.commit(slot, key, checksum);
            state.residency.insert(key, parent, location);
            new.push((index, location));
            match &mut run {
                Some((next, run)) if *next == index => {
                    *next += 1;
                    run.fingerprints.push(key.fingerprint());
                    run.locations.push(location);
                }
                _ => {
                    self.publish_run(state, now, run.take());
                    let fingerprints = vec![key.fingerprint()];
                    run = Some((
                        index + 1,
                        Run {
                            parent,
                            fingerprints,
                            locations: vec![location],
                        },
                    ));
                }
            }
        }
        self.publish_run(state, now, run);
        self.removals
            .stored(new.iter().map(|(index, _)| keys[*index]));
        new
    }

    fn publish_run(&self, state: &mut State, now: Duration, run: Option<(usize, Run)>) {
        let Some((_, run)) = run else { return };
        let parent = run.parent.map(BlockKey::fingerprint);
        state
            .writer
            .add_run(self.own, parent, &run.fingerprints, &run.locations);
        if let Some(publisher) = &mut state.publisher {
            publisher.stored(now, parent, &run.fingerprints, &run.locations);
            self.changed.notify_one();
        }
    }
}
