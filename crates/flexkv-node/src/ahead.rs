//! Bringing what a lookup found on the staged tier into memory before the engine asks to load it.
//!
//! It is a guess that may be wrong, so it stands back: little is read at a time, nothing while anyone
//! waits for the staged tier, and only a part of memory ever holds blocks that were brought and not
//! used. It ends when the lookup's ticket does; a load takes over what is under way.

use std::collections::HashSet;
use std::sync::Arc;

use flexkv_block::{BlockKey, Tier};
use flexkv_index::OwnerRun;
use flexkv_ports::StagedTier;
use metrics::Counter;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Shared;
use crate::reads::{self, Purpose, Wanted};

/// Blocks that are read at a time, at most; and no more than one in so many slots of memory.
const AT_ONCE: usize = 8;
const AT_ONCE_OF_SLOTS: usize = 8;
/// One in so many slots of memory may hold a block that was brought and not used.
const UNUSED_OF_SLOTS: usize = 4;

/// Blocks are being brought. Given up when dropped.
#[derive(Debug)]
pub(crate) struct Ahead(AbortHandle);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to bring what this node's staged tier has of `keys`, of which a lookup found `runs`. Takes no
/// lock.
pub(crate) fn begin(shared: &Arc<Shared>, keys: &[BlockKey], runs: &[OwnerRun]) -> Option<Ahead> {
    let staged = shared.staged.clone()?;
    let (mut wanted, mut locations) = (Vec::new(), Vec::new());
    for run in runs.iter().filter(|run| run.owner == shared.own) {
        locations.clear();
        shared.snapshot.locate(keys, *run, &mut locations);
        let keys = &keys[run.start..run.start + run.len];
        let at = keys.iter().zip(&locations);
        let at = at.filter_map(|(key, at)| Some((*key, (*at)?)));
        wanted.extend(at.filter(|(_, at)| at.tier == Tier::Ssd));
    }
    if wanted.is_empty() {
        return None;
    }
    let task = shared.runtime.spawn(bring(shared.clone(), staged, wanted));
    Some(Ahead(task.abort_handle()))
}

/// Brings blocks in order, as long as there is room for them.
async fn bring(shared: Arc<Shared>, staged: Arc<dyn StagedTier>, wanted: Vec<Wanted>) {
    let slots = shared.tier.shape().slots as usize;
    let at_once = AT_ONCE.min(slots / AT_ONCE_OF_SLOTS).max(1);
    for part in wanted.chunks(at_once) {
        let Ok(turn) = shared.reads.ahead.acquire().await else {
            return;
        };
        shared.reads.calm().await;
        let room = (slots / UNUSED_OF_SLOTS).saturating_sub(shared.core.unused_ahead());
        let part = &part[..part.len().min(room)];
        if part.is_empty() {
            return;
        }
        let deadline = Instant::now() + shared.config.fetch_timeout;
        let claim = reads::claim(&shared, &staged, part, deadline, Purpose::Ahead);
        let mut failed = claim.short;
        for read in &claim.reads {
            read.landing.ended().await;
            let landed = read.landing.landed();
            failed |= landed.is_none_or(|brought| brought.reason.is_some());
        }
        if failed {
            return;
        }
        drop(turn);
    }
}

/// Which blocks in memory were brought ahead and not used yet, and what became of the others.
pub(crate) struct Unused {
    blocks: HashSet<BlockKey>,
    pub(crate) brought: Counter,
    pub(crate) used: Counter,
    pub(crate) wasted: Counter,
}

impl Unused {
    /// None so far; tells the counters from now on.
    pub(crate) fn new([brought, used, wasted]: [Counter; 3]) -> Self {
        Self {
            blocks: HashSet::new(),
            brought,
            used,
            wasted,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn has(&self, key: BlockKey) -> bool {
        self.blocks.contains(&key)
    }

    /// The block was brought.
    pub(crate) fn add(&mut self, key: BlockKey) {
        if self.blocks.insert(key) {
            self.brought.increment(1);
        }
    }

    /// Someone has it now.
    pub(crate) fn note_use(&mut self, key: BlockKey) {
        if !self.blocks.is_empty() && self.blocks.remove(&key) {
            self.used.increment(1);
        }
    }

    /// It left memory.
    pub(crate) fn note_end(&mut self, key: BlockKey) {
        if !self.blocks.is_empty() && self.blocks.remove(&key) {
            self.wasted.increment(1);
        }
    }

    /// All left memory.
    pub(crate) fn clear(&mut self) {
        self.wasted.increment(self.blocks.len() as u64);
        self.blocks.clear();
    }
}

#[cfg(test)]
mod tests;
