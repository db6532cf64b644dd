//! The core's dealings with the staged tier: what is to be written there, what came from there, what
//! went. Moves no bytes itself.

use flexkv_index::{LiveSet as _, Walk};
use flexkv_ports::StagedBlock;

use super::*;

/// A block to be written to the staged tier.
pub(crate) struct Unwritten {
    pub(crate) pin: ReadSlot,
    pub(crate) parent: Option<BlockKey>,
    /// How often everything had been dropped when it was chosen.
    pub(crate) resets: u64,
}

impl Core {
    /// Notes blocks that are in memory now and may be worth writing.
    pub(super) fn note_unwritten(&self, state: &mut State, keys: &[BlockKey], origin: Origin) {
        if !state.backlog.wants(origin) {
            return;
        }
        let State {
            backlog, residency, ..
        } = state;
        let here = |key: &&BlockKey| {
            residency.get_in(**key, Tier::Host).is_some()
                && residency.get_in(**key, Tier::Ssd).is_none()
        };
        let mut noted = false;
        for key in keys.iter().filter(here) {
            noted |= backlog.push(*key);
        }
        if noted {
            self.unwritten.notify_one();
        }
    }

    /// The next block to write that is still in memory and not yet in the staged tier.
    pub(crate) fn next_unwritten(&self, tier: &dyn BlockTier) -> Option<Unwritten> {
        let mut state = self.lock();
        while let Some(key) = state.backlog.pop() {
            let Some(location) = state.residency.get_in(key, Tier::Host) else {
                state.backlog.missed += 1;
                continue;
            };
            if state.residency.get_in(key, Tier::Ssd).is_some() {
                continue;
            }
            if let Ok(pin) = tier.pin(location, key) {
                return Some(Unwritten {
                    pin,
                    parent: state.residency.parent(key),
                    resets: state.resets,
                });
            }
        }
        None
    }

    /// Blocks that went from memory, or from the backlog, before they were written, since the last
    /// call.
    pub(crate) fn take_missed(&self) -> u64 {
        std::mem::take(&mut self.lock().backlog.missed)
    }

    /// A block was written to `location`.
    pub(crate) fn written(
        &self,
        now: Duration,
        key: BlockKey,
        parent: Option<BlockKey>,
        location: Location,
        resets: u64,
        tier: &dyn BlockTier,
    ) {
        let mut state = self.lock();
        let unwanted = state.resets != resets || state.residency.get_in(key, Tier::Ssd).is_some();
        if unwanted {
            if self.give_up(location, tier) == Eviction::Pinned {
                state.doomed.push(location);
            }
            return;
        }
        state.residency.insert(key, parent, location);
        if state.residency.get(key) == Some(location) {
            // It went from memory meanwhile.
            let mut runs = Runs::default();
            runs.add(key, parent, location);
            self.publish_runs(&mut state, now, runs);
            self.removals.stored([key]);
        }
    }

    /// Evicts up to `count` blocks of the staged tier; says how many.
    pub(crate) fn evict_staged(&self, now: Duration, count: usize) -> usize {
        let Some(staged) = &self.staged else { return 0 };
        self.evict_from(
            Tier::Ssd,
            now,
            count,
            |location| staged.evict(location),
            |_, _| true,
        )
    }

    /// The staged tier no longer has these blocks.
    pub(crate) fn forget_staged(&self, now: Duration, gone: &[(BlockKey, Location)]) {
        self.forget(&mut self.lock(), now, gone);
    }

    /// Makes what was read from the staged tier blocks in memory. A block that is in memory already
    /// keeps its place, one that is no longer here at all is left out, and so are all if everything
    /// was dropped since `resets` was read. `ahead` says that nobody has asked for them yet.
    pub(crate) fn promote(
        &self,
        now: Duration,
        read: Vec<(BlockKey, WriteSlot, Checksum)>,
        tier: &dyn BlockTier,
        resets: u64,
        ahead: bool,
    ) {
        let mut state = self.lock();
        if state.resets != resets {
            return;
        }
        let mut runs = Runs::default();
        for (key, slot, checksum) in read {
            let held = state.residency.get(key);
            if held.is_none_or(|held| held.tier == Tier::Host) {
                continue;
            }
            let parent = state.residency.parent(key);
            let location = tier.commit(slot, key, checksum);
            state.residency.insert(key, parent, location);
            runs.add(key, parent, location);
            if ahead {
                state.unused.add(key);
            }
        }
        self.publish_runs(&mut state, now, runs);
    }

    /// Takes up to `count` slots for blocks that nobody has asked for yet: free ones, and those of the
    /// blocks to be evicted next, but of none that is yet to be written or was brought ahead itself.
    pub(crate) fn reserve_ahead(
        &self,
        now: Duration,
        count: usize,
        tier: &dyn BlockTier,
        counters: &Counters,
    ) -> Vec<WriteSlot> {
        let mut slots: Vec<WriteSlot> = std::iter::from_fn(|| tier.reserve()).take(count).collect();
        let missing = count - slots.len();
        if missing > 0 {
            let spare = |state: &State, key| !state.backlog.has(key) && !state.unused.has(key);
            let give_up = |location| tier.evict(location);
            let evicted = self.evict_from(Tier::Host, now, missing, give_up, spare);
            counters.evicted_blocks.increment(evicted as u64);
            slots.extend(std::iter::from_fn(|| tier.reserve()).take(missing));
        }
        slots
    }

    /// Blocks in memory that were brought ahead and not used yet.
    pub(crate) fn unused_ahead(&self) -> usize {
        self.lock().unused.len()
    }

    /// Blocks that were in the staged tier when the node started, those used last being the last to go.
    pub(crate) fn recover(&self, blocks: Vec<StagedBlock>) {
        let mut state = self.lock();
        let State {
            residency, writer, ..
        } = &mut *state;
        for block in blocks {
            residency.insert(block.key, block.parent, block.location);
        }
        residency.tell(&mut Walk::default(), usize::MAX, &mut |run| {
            writer.add_run(self.own, run.parent, run.fingerprints, run.locations);
        });
    }
}
