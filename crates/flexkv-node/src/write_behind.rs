//! Writing blocks to the staged tier behind the engines' backs: which ones, in which order, how many
//! at a time.
//!
//! Nobody waits for it. A block that leaves memory before its turn is not written, and what the tier
//! refuses is counted and forgotten.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Location};
use flexkv_ports::{StagedTier, WriteRefusal};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::Shared;
use crate::config::Admission;

/// Writes under way at a time: more than a device has in flight, so that it need not wait for this
/// task where the processor is short.
const LANES: usize = 64;
/// How often the tier is asked what it lost while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a block in memory may be worth writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An engine computed it.
    Stored,
    /// A peer had it.
    Fetched,
    /// It was here and was used.
    Used,
}

/// Blocks to be written, each once, in the order they came.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// None if there is nothing to write to.
    admission: Option<Admission>,
    queue: VecDeque<BlockKey>,
    queued: BTreeSet<BlockKey>,
    most: usize,
    /// Blocks whose turn came too late.
    pub(crate) missed: u64,
}

impl Backlog {
    /// Takes up to `most` blocks, of those that `admission` lets in.
    pub(crate) fn new(admission: Option<Admission>, most: usize) -> Self {
        Self {
            admission,
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            most,
            missed: 0,
        }
    }

    /// Whether blocks of this origin are to be written.
    pub(crate) fn wants(&self, origin: Origin) -> bool {
        match (self.admission, origin) {
            (None, _) => false,
            (Some(Admission::Computed), origin) => origin == Origin::Stored,
            (Some(Admission::All), origin) => origin != Origin::Used,
            (Some(Admission::Reused), origin) => origin == Origin::Used,
        }
    }

    /// Adds a block; says whether it is new. If there are too many, the first one goes: it has been
    /// in memory the longest and may be gone from there already.
    pub(crate) fn push(&mut self, key: BlockKey) -> bool {
        if !self.queued.insert(key) {
            return false;
        }
        self.queue.push_back(key);
        if self.queue.len() > self.most {
            self.missed += u64::from(self.pop().is_some());
        }
        true
    }

    /// Whether the block waits to be written.
    pub(crate) fn has(&self, key: BlockKey) -> bool {
        self.queued.contains(&key)
    }

    pub(crate) fn pop(&mut self) -> Option<BlockKey> {
        let key = self.queue.pop_front()?;
        self.queued.remove(&key);
        Some(key)
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.queued.clear();
    }
}

/// What became of one write.
struct Ended {
    key: BlockKey,
    parent: Option<BlockKey>,
    resets: u64,
    outcome: Result<Location, WriteRefusal>,
}

/// Writes for as long as the node runs.
pub(crate) async fn run(shared: Arc<Shared>, staged: Arc<dyn StagedTier>) {
    let slots = staged.shape().slots as usize;
    let lanes = LANES.min((shared.tier.shape().slots as usize / 4).max(1));
    let spare = lanes.min((slots / 8).max(1));
    let mut open = FuturesUnordered::new();
    loop {
        heed_losses(&shared, &*staged);
        while open.len() < lanes {
            let Some(next) = shared.core.next_unwritten(&*shared.tier) else {
                break;
            };
            make_room(&shared, &*staged, open.len() + 1, spare);
            let (key, parent, resets) = (next.pin.key(), next.parent, next.resets);
            let writing = staged.write(next.pin, parent);
            open.push(async move {
                Ended {
                    key,
                    parent,
                    resets,
                    outcome: writing.await,
                }
            });
        }
        shared
            .counters
            .unwritten
            .increment(shared.core.take_missed());
        let more = shared.core.unwritten.notified();
        tokio::select! {
            biased;
            Some(ended) = open.next(), if !open.is_empty() => settle(&shared, &ended),
            () = more, if open.len() < lanes => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Frees slots for `wanted` writes if there are not as many, and some more so that the next ones find
/// some.
fn make_room(shared: &Shared, staged: &dyn StagedTier, wanted: usize, spare: usize) {
    let free = staged.free_slots();
    if free < wanted {
        let evicted = shared
            .core
            .evict_staged(shared.now(), wanted + spare - free);
        shared.counters.evicted_staged.increment(evicted as u64);
    }
}

fn settle(shared: &Shared, ended: &Ended) {
    let counters = &shared.counters;
    match ended.outcome {
        Ok(location) => {
            counters.staged_writes.increment(1);
            shared.core.written(
                shared.now(),
                ended.key,
                ended.parent,
                location,
                ended.resets,
                &*shared.tier,
            );
        }
        Err(WriteRefusal::Full | WriteRefusal::Busy) => counters.unwritten.increment(1),
        Err(WriteRefusal::Failed) => counters.staged_write_failed.increment(1),
    }
}

/// Forgets what the tier lost because its storage failed.
pub(crate) fn heed_losses(shared: &Shared, staged: &dyn StagedTier) {
    let lost = staged.lost();
    if !lost.is_empty() {
        shared.counters.staged_lost.increment(lost.len() as u64);
        shared.core.forget_staged(shared.now(), &lost);
    }
}

#[cfg(test)]
mod tests;
