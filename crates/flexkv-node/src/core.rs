//! What changes under one lock: the blocks held here, their place in the index, and the log of
//! changes. Lookups never take this lock. Does no I/O.

mod staged;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, Tier};
use flexkv_index::{
    AnyPolicy, Follower, OwnerId, PolicyKind, Publisher, Removed, Residency, SnapshotWriter,
};
use flexkv_ports::{BlockTier, Eviction, ReadSlot, RemovalFeed, StagedTier, WriteSlot};
use tokio::sync::Notify;

use crate::ahead::Unused;
use crate::counters::Counters;
use crate::write_behind::{Backlog, Origin};

/// How many blocks that must stay an eviction looks past before it gives up.
const KEPT_SKIPPED_MAX: usize = 4096;

/// The state behind the lock.
pub(crate) struct State {
    pub(crate) residency: Residency<AnyPolicy>,
    pub(crate) publisher: Option<Publisher>,
    pub(crate) follower: Follower,
    pub(crate) writer: SnapshotWriter,
    /// The follower's count of changes when the table of peers was made.
    pub(crate) peers_shown: u64,
    /// What was dropped but could not be freed because it was being read.
    pub(crate) doomed: Vec<Location>,
    /// How often everything was dropped.
    pub(crate) resets: u64,
    /// What is to be written to the staged tier.
    pub(crate) backlog: Backlog,
    /// What was brought from the staged tier and not used yet.
    pub(crate) unused: Unused,
}

/// Holds nothing; `policies` are those of memory and of the staged tier.
pub(crate) fn residency([memory, staged]: [PolicyKind; 2]) -> Residency<AnyPolicy> {
    Residency::new(memory.make(), staged.make())
}

/// What is to be told of a block that left a tier.
enum Now {
    Gone,
    /// It lies in a slower tier.
    At(Location),
    /// What was told holds.
    AsBefore,
}

/// A block that left a tier.
struct Left {
    key: BlockKey,
    parent: Option<BlockKey>,
    now: Now,
}

impl State {
    /// Notes that a block no longer lies at `location`.
    fn leave(&mut self, key: BlockKey, location: Location) -> Left {
        if location.tier == Tier::Host {
            self.unused.note_end(key);
        }
        let parent = self.residency.parent(key);
        let was_best = self.residency.get(key) == Some(location);
        let now = match self.residency.remove(key, location) {
            Removed::Gone => Now::Gone,
            Removed::Left(left) if was_best => Now::At(left),
            Removed::Left(_) | Removed::Absent => Now::AsBefore,
        };
        Left { key, parent, now }
    }
}

/// Blocks that follow each other and are told of together.
struct Run {
    parent: Option<BlockKey>,
    last: BlockKey,
    fingerprints: Vec<u64>,
    locations: Vec<Location>,
}

/// Gathers blocks to runs.
#[derive(Default)]
struct Runs {
    done: Vec<Run>,
    open: Option<Run>,
}

impl Runs {
    fn add(&mut self, key: BlockKey, parent: Option<BlockKey>, location: Location) {
        match &mut self.open {
            Some(run) if parent == Some(run.last) => {
                run.last = key;
                run.fingerprints.push(key.fingerprint());
                run.locations.push(location);
            }
            open => {
                let run = Run {
                    parent,
                    last: key,
                    fingerprints: vec![key.fingerprint()],
                    locations: vec![location],
                };
                self.done.extend(open.replace(run));
            }
        }
    }

    fn finish(mut self) -> Vec<Run> {
        self.done.extend(self.open);
        self.done
    }
}

/// The lock, and what is done under it.
pub(crate) struct Core {
    state: Mutex<State>,
    own: OwnerId,
    /// Storage behind the memory, if there is any.
    staged: Option<Arc<dyn StagedTier>>,
    policies: [PolicyKind; 2],
    /// Wakes the task that publishes.
    pub(crate) changed: Notify,
    /// Wakes the task that writes to the staged tier.
    pub(crate) unwritten: Notify,
    /// Tells engines what is no longer here.
    pub(crate) removals: RemovalFeed,
}

impl Core {
    /// `policies` are those of memory and of the staged tier, as in `state`.
    pub(crate) fn new(
        state: State,
        own: OwnerId,
        staged: Option<Arc<dyn StagedTier>>,
        policies: [PolicyKind; 2],
    ) -> Self {
        Self {
            policies,
            state: Mutex::new(state),
            own,
            staged,
            changed: Notify::new(),
            unwritten: Notify::new(),
            removals: RemovalFeed::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this node holds each of `keys` in memory.
    pub(crate) fn find(&self, keys: &[BlockKey]) -> Vec<Option<Location>> {
        self.find_in(keys, Tier::Host)
    }

    /// Where this node holds each of `keys` in `tier`.
    pub(crate) fn find_in(&self, keys: &[BlockKey], tier: Tier) -> Vec<Option<Location>> {
        let state = self.lock();
        keys.iter()
            .map(|key| state.residency.get_in(*key, tier))
            .collect()
    }

    /// Marks a prefix as used just now.
    pub(crate) fn touch(&self, keys: &[BlockKey]) {
        let mut state = self.lock();
        state.residency.touch(keys);
        keys.iter().for_each(|key| state.unused.note_use(*key));
        self.note_unwritten(&mut state, keys, Origin::Used);
        if let Some(staged) = &self.staged {
            let there = |key: &&BlockKey| state.residency.get_in(**key, Tier::Ssd).is_some();
            // The end of a prompt goes first, so it counts as used before the beginning.
            let used: Vec<BlockKey> = keys.iter().rev().filter(there).copied().collect();
            drop(state);
            staged.used(&used);
        }
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

    /// Evicts up to `count` blocks from memory; says how many.
    fn evict(&self, now: Duration, count: usize, tier: &dyn BlockTier) -> usize {
        self.evict_from(
            Tier::Host,
            now,
            count,
            |location| tier.evict(location),
            |_, _| true,
        )
    }

    /// Has a tier give up as many blocks as it can, up to `count`, those first that its policy names
    /// first, and of those only what is `spare`; says how many.
    fn evict_from(
        &self,
        tier: Tier,
        now: Duration,
        count: usize,
        give_up: impl Fn(Location) -> Eviction,
        spare: impl Fn(&State, BlockKey) -> bool,
    ) -> usize {
        let mut state = self.lock();
        let mut gone = Vec::with_capacity(count);
        let (mut after, mut kept) = (None, 0);
        while gone.len() < count && kept < KEPT_SKIPPED_MAX {
            let Some((key, location)) = state.residency.next_victim(tier, after) else {
                break;
            };
            let given_up = if spare(&state, key) {
                give_up(location)
            } else {
                Eviction::Pinned
            };
            match given_up {
                Eviction::Done | Eviction::Stale => gone.push(state.leave(key, location)),
                Eviction::Pinned => {
                    kept += 1;
                    after = Some(key);
                }
            }
        }
        let count = gone.len();
        self.tell_left(&mut state, now, gone);
        count
    }

    /// Drops every block; says how many. The slots of those that are being read are freed later.
    pub(crate) fn reset(&self, tier: &dyn BlockTier) -> usize {
        let mut state = self.lock();
        let all: Vec<(BlockKey, Location)> = state.residency.iter().collect();
        let fingerprints: Vec<u64> = all.iter().map(|(key, _)| key.fingerprint()).collect();
        let held = std::mem::replace(&mut state.residency, residency(self.policies));
        state.backlog.clear();
        state.unused.clear();
        state.writer.remove(self.own, &fingerprints);
        for (key, _) in &all {
            for tier_of in [Tier::Host, Tier::Ssd] {
                let Some(location) = held.get_in(*key, tier_of) else {
                    continue;
                };
                if self.give_up(location, tier) == Eviction::Pinned {
                    state.doomed.push(location);
                }
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
        doomed.retain(|location| self.give_up(*location, tier) == Eviction::Pinned);
    }

    /// Frees a slot of memory or of the staged tier.
    fn give_up(&self, location: Location, tier: &dyn BlockTier) -> Eviction {
        match (location.tier, &self.staged) {
            (Tier::Host, _) => tier.evict(location),
            (Tier::Ssd, Some(staged)) => staged.evict(location),
            (Tier::Ssd, None) => Eviction::Stale,
        }
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

    /// Notes that blocks no longer lie where they lay, and tells what that means.
    fn forget(&self, state: &mut State, now: Duration, gone: &[(BlockKey, Location)]) {
        let left = gone.iter().map(|(key, at)| state.leave(*key, *at));
        let left = left.collect();
        self.tell_left(state, now, left);
    }

    /// Tells of blocks that left a tier: they are gone, or lie in a slower one.
    fn tell_left(&self, state: &mut State, now: Duration, left: Vec<Left>) {
        let mut gone: Vec<BlockKey> = Vec::new();
        let mut moved = Runs::default();
        // What goes first is the end of a prompt: the other way round, moved blocks are runs.
        for Left { key, parent, now } in left.into_iter().rev() {
            match now {
                Now::Gone => gone.push(key),
                Now::At(location) => moved.add(key, parent, location),
                Now::AsBefore => {}
            }
        }
        self.publish_runs(state, now, moved);
        if gone.is_empty() {
            return;
        }
        let fingerprints: Vec<u64> = gone.iter().map(|key| key.fingerprint()).collect();
        self.removals.removed(gone.iter().copied());
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
        let mut state = self.lock();
        let new = self.commit_in(&mut state, now, keys, filled, tier);
        let written: Vec<BlockKey> = new.iter().map(|(index, _)| keys[*index]).collect();
        self.note_unwritten(&mut state, &written, Origin::Stored);
        new
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
        let new = self.commit_in(&mut state, now, keys, filled, tier);
        let fetched: Vec<BlockKey> = new.iter().map(|(index, _)| keys[*index]).collect();
        self.note_unwritten(&mut state, &fetched, Origin::Fetched);
        new
    }

    fn commit_in(
        &self,
        state: &mut State,
        now: Duration,
        keys: &[BlockKey],
        filled: Vec<(usize, WriteSlot, Checksum)>,
        tier: &dyn BlockTier,
    ) -> Vec<(usize, Location)> {
        let mut runs = Runs::default();
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
            runs.add(key, parent, location);
        }
        self.publish_runs(state, now, runs);
        self.removals
            .stored(new.iter().map(|(index, _)| keys[*index]));
        new
    }

    fn publish_runs(&self, state: &mut State, now: Duration, runs: Runs) {
        for run in runs.finish() {
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
}
