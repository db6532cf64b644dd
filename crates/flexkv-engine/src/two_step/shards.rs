//! The two steps for a deployment of several shards, such as tensor-parallel ranks: every rank has
//! its own part of each block under its own key, and a block counts only if all parts are there.
//!
//! Knows nothing of how keys of shards are made.

use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, LoadLimits, Loaded, Ticket};
use futures_util::future::join_all;

use super::TwoStep;

/// How much of a prompt exists on all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardsHit {
    /// One per shard, in the order of the shards.
    tickets: Vec<Ticket>,
    /// Leading blocks that exist on every shard.
    pub blocks: usize,
    /// How many of those every shard's node holds itself, at least.
    pub local: usize,
}

/// What was loaded on all shards.
#[derive(Clone, Debug)]
pub struct ShardsLoaded {
    /// Leading blocks that every shard has; each list below is that long.
    pub blocks: usize,
    /// Per shard, its blocks. The counts in it are of all that was loaded for that shard.
    pub shards: Vec<Loaded>,
}

impl ShardsLoaded {
    fn new(mut shards: Vec<Loaded>) -> Self {
        let least = shards.iter().map(|loaded| loaded.blocks.len()).min();
        let blocks = least.unwrap_or(0);
        for loaded in &mut shards {
            loaded.blocks.truncate(blocks);
        }
        Self { blocks, shards }
    }
}

impl TwoStep {
    /// How many leading blocks exist on all shards; `shards` holds the prompt's keys on each.
    /// A caller that drops the call midway leaves tickets behind until its session ends.
    ///
    /// # Errors
    /// As [`Self::match_prefix`], if it fails for any shard; no ticket is held then.
    pub async fn match_shards(&self, shards: &[Vec<BlockKey>]) -> Result<ShardsHit, CacheError> {
        let hits = join_all(shards.iter().map(|keys| self.match_prefix(keys))).await;
        let mut found = ShardsHit {
            tickets: Vec::with_capacity(hits.len()),
            blocks: usize::MAX,
            local: usize::MAX,
        };
        let mut failed = None;
        for hit in hits {
            match hit {
                Ok(hit) => {
                    found.tickets.push(hit.ticket);
                    found.blocks = found.blocks.min(hit.blocks);
                    found.local = found.local.min(hit.local);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            // The first error is the one to tell.
            let _ = self.cancel_shards(&found).await;
            return Err(error);
        }
        if found.tickets.is_empty() {
            (found.blocks, found.local) = (0, 0);
        }
        Ok(found)
    }

    /// Starts bringing the first `blocks` blocks of every shard here.
    ///
    /// # Errors
    /// As [`Self::launch`], if it fails for any shard; the hit is still to be cancelled.
    pub async fn launch_shards(
        &self,
        hit: &ShardsHit,
        blocks: usize,
        limits: impl Into<LoadLimits>,
    ) -> Result<(), CacheError> {
        let (blocks, limits) = (blocks.min(hit.blocks), limits.into());
        let launch = |ticket: &Ticket| self.launch(*ticket, blocks, limits);
        let launched = join_all(hit.tickets.iter().map(launch)).await;
        launched.into_iter().collect()
    }

    /// What all shards have, or `None` while any of them is under way.
    ///
    /// # Errors
    /// As [`Self::poll`], if it fails for any shard.
    pub async fn poll_shards(&self, hit: &ShardsHit) -> Result<Option<ShardsLoaded>, CacheError> {
        let polled = join_all(hit.tickets.iter().map(|ticket| self.poll(*ticket))).await;
        let loaded: Option<Vec<Loaded>> = polled.into_iter().collect::<Result<_, _>>()?;
        Ok(loaded.map(ShardsLoaded::new))
    }

    /// As [`Self::poll_shards`], but waits up to `within` for all shards.
    ///
    /// # Errors
    /// As [`Self::wait`], if it fails for any shard.
    pub async fn wait_shards(
        &self,
        hit: &ShardsHit,
        within: Duration,
    ) -> Result<Option<ShardsLoaded>, CacheError> {
        let waits = hit.tickets.iter().map(|ticket| self.wait(*ticket, within));
        let waited = join_all(waits).await;
        let loaded: Option<Vec<Loaded>> = waited.into_iter().collect::<Result<_, _>>()?;
        Ok(loaded.map(ShardsLoaded::new))
    }

    /// Gives up all that the tickets of a hit hold, whatever happens to each.
    ///
    /// # Errors
    /// As [`Self::cancel`], if it fails for any shard.
    pub async fn cancel_shards(&self, hit: &ShardsHit) -> Result<(), CacheError> {
        let cancelled = join_all(hit.tickets.iter().map(|ticket| self.cancel(*ticket))).await;
        cancelled.into_iter().collect()
    }
}
