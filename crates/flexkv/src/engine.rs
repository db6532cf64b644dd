//! A simulated engine: takes a prompt, loads what the cache has, checks every byte of it, computes
//! the rest and stores it. Knows nothing of nodes and peers; a [`KvCache`] is all it sees.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_ports::{BlockView, CacheError, Filled, KvCache, Loaded, Ticket};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::content;

/// An engine attached to a cache.
pub struct Engine {
    cache: Arc<dyn KvCache>,
    load_deadline: Duration,
    computing: Arc<Semaphore>,
}

/// What became of one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Blocks of the prompt.
    pub blocks: usize,
    /// Leading blocks that the cache said it has.
    pub promised: usize,
    /// Leading blocks that were loaded and are right, byte for byte.
    pub verified: usize,
    /// Blocks that were loaded and are wrong.
    pub corrupt: usize,
    /// Loaded blocks that the engine's own node held.
    pub local: usize,
    /// Loaded blocks that came from other nodes.
    pub remote: usize,
    /// Blocks that the engine computed and the cache took.
    pub stored: usize,
    /// How long the lookup took.
    pub lookup: Duration,
    /// How long the load took.
    pub load: Duration,
}

impl Engine {
    /// An engine that waits at most `load_deadline` for the blocks of a prompt. It makes and checks
    /// bytes under a permit of `computing`: a real engine does that on a device of its own, so
    /// simulated ones must leave processors to the nodes.
    pub fn new(
        cache: Arc<dyn KvCache>,
        load_deadline: Duration,
        computing: Arc<Semaphore>,
    ) -> Self {
        Self {
            cache,
            load_deadline,
            computing,
        }
    }

    /// Processes the prompt whose blocks are `keys`.
    pub async fn run(&self, keys: &[BlockKey]) -> Result<Outcome, CacheError> {
        let mut outcome = Outcome {
            blocks: keys.len(),
            ..Outcome::default()
        };
        if keys.is_empty() {
            return Ok(outcome);
        }
        let asked = Instant::now();
        let hit = self.cache.match_prefix(keys).await?;
        outcome.lookup = asked.elapsed();
        outcome.promised = hit.blocks;
        let used = self.use_prefix(keys, hit.ticket, &mut outcome).await;
        let released = self.cache.release(hit.ticket).await;
        used.and(released).map(|()| outcome)
    }

    /// Loads and checks the prefix of a match, then stores the blocks after it.
    async fn use_prefix(
        &self,
        keys: &[BlockKey],
        ticket: Ticket,
        outcome: &mut Outcome,
    ) -> Result<(), CacheError> {
        if outcome.promised > 0 {
            let asked = Instant::now();
            let loaded = self.load(ticket, outcome.promised).await?;
            outcome.load = asked.elapsed();
            outcome.local = loaded.local;
            outcome.remote = loaded.remote;
            let permit = self.computing.acquire().await;
            let right = check(keys, &loaded.blocks);
            drop(permit);
            outcome.verified = right.iter().take_while(|right| **right).count();
            outcome.corrupt = right.iter().filter(|right| !**right).count();
        }
        if outcome.verified < keys.len() {
            outcome.stored = self.store(keys, outcome.verified).await?;
        }
        Ok(())
    }

    async fn load(&self, ticket: Ticket, blocks: usize) -> Result<Loaded, CacheError> {
        let limits = self.load_deadline.into();
        self.cache.load(ticket, blocks, limits).await?;
        self.cache.wait(ticket).await
    }

    /// Stores `keys[first..]`; returns how many the cache took.
    async fn store(&self, keys: &[BlockKey], first: usize) -> Result<usize, CacheError> {
        let grant = self.cache.store(keys, first).await?;
        let permit = self.computing.acquire().await;
        let mut filled = Vec::new();
        for (index, slot) in grant.slots.iter().enumerate() {
            if let Some(slot) = slot {
                let checksum = content::write_block(keys[first + index], slot);
                filled.push(Filled { index, checksum });
            }
        }
        drop(permit);
        let committed = if filled.is_empty() {
            Ok(())
        } else {
            self.cache.commit(grant.ticket, &filled).await
        };
        let released = self.cache.release(grant.ticket).await;
        committed.and(released).map(|()| filled.len())
    }
}

/// Per block, whether it is the wanted one, byte for byte.
fn check(keys: &[BlockKey], blocks: &[BlockView]) -> Vec<bool> {
    keys.iter()
        .zip(blocks)
        .map(|(key, block)| block.key == *key && content::check_block(*key, &block.bytes))
        .collect()
}

#[cfg(test)]
mod tests;
