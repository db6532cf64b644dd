//! Bringing blocks from the staged tier into memory: for a load here, or for a peer that asks.
//!
//! Every block is verified as it is read. What fails is dropped from the index and counted; to the
//! caller it is a block that is not there. Knows nothing of who is behind a peer's request.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Location, Tier};
use flexkv_ports::{BoxFuture, ReadSlot, Stager};
use tokio::time::{Instant, timeout_at};

use crate::counters::Miss;
use crate::reads::{self, Purpose, Wanted};
use crate::{Node, Shared};

/// A read that others began may have less time than is left here: what it did not bring is asked for
/// once more.
const ROUNDS: usize = 2;

/// What became of a request: a pin for each block that is in memory now.
pub(crate) struct Staged {
    pub(crate) pins: Vec<Option<ReadSlot>>,
    /// Why not all are, if not all are.
    pub(crate) reason: Option<Miss>,
}

impl Shared {
    /// Brings blocks of the staged tier into memory. The first ones get slots first.
    pub(crate) async fn bring(self: &Arc<Self>, wanted: &[Wanted], deadline: Instant) -> Staged {
        let keys: Vec<BlockKey> = wanted.iter().map(|(key, _)| *key).collect();
        let mut brought = Staged {
            pins: self.pin_all(&keys),
            reason: None,
        };
        let Some(staged) = &self.staged else {
            return brought;
        };
        let waiting = self.reads.wait();
        let mut open = wanted.to_vec();
        for _ in 0..ROUNDS {
            let claim = reads::claim(self, staged, &open, deadline, Purpose::Demand);
            if claim.short {
                brought.reason = Some(Miss::NoSpace);
            }
            for read in &claim.reads {
                let own = claim.started == Some(read.id);
                // One that was begun here ends by itself at the deadline, with what has come.
                let ended = if own {
                    read.landing.ended().await;
                    true
                } else {
                    timeout_at(deadline, read.landing.ended()).await.is_ok()
                };
                let landed = read.landing.landed();
                let lost = (!ended).then_some(Miss::Deadline);
                let reason = landed.map_or(lost, |landed| landed.reason);
                brought.reason = reason.or(brought.reason);
            }
            let missing: Vec<usize> = (0..keys.len())
                .filter(|i| brought.pins[*i].is_none())
                .collect();
            let named: Vec<BlockKey> = missing.iter().map(|i| keys[*i]).collect();
            for (i, pin) in missing.iter().zip(self.pin_all(&named)) {
                brought.pins[*i] = pin;
            }
            // What others' reads did not bring, and is still there.
            let joined = claim.reads.iter().filter(|it| claim.started != Some(it.id));
            let joined: HashSet<BlockKey> = joined.flat_map(|it| it.keys()).copied().collect();
            let lost = |i: &usize| brought.pins[*i].is_none() && joined.contains(&keys[*i]);
            let lost: Vec<BlockKey> = missing.into_iter().filter(lost).map(|i| keys[i]).collect();
            let there = self.core.find_in(&lost, Tier::Ssd);
            let still = lost.into_iter().zip(there);
            open = still.filter_map(|(key, at)| Some((key, at?))).collect();
            if open.is_empty() || Instant::now() >= deadline {
                break;
            }
        }
        drop(waiting);
        brought
    }

    /// Pins of those blocks that are in memory.
    pub(crate) fn pin_all(&self, keys: &[BlockKey]) -> Vec<Option<ReadSlot>> {
        let found = self.core.find(keys).into_iter().zip(keys);
        found
            .map(|(location, key)| self.tier.pin(location?, *key).ok())
            .collect()
    }

    /// Holds blocks for a peer.
    async fn stage(
        self: &Arc<Self>,
        wants: Vec<(Location, BlockKey)>,
        deadline: Duration,
    ) -> Vec<Option<ReadSlot>> {
        let deadline = Instant::now() + deadline;
        let keys: Vec<BlockKey> = wants.iter().map(|(_, key)| *key).collect();
        let mut pins = self.pin_all(&keys);
        let missing: Vec<usize> = (0..keys.len()).filter(|i| pins[*i].is_none()).collect();
        let on_disk = self.core.find_in(&keys, Tier::Ssd);
        let (places, wanted): (Vec<usize>, Vec<_>) = missing
            .into_iter()
            .filter_map(|i| Some((i, (keys[i], on_disk[i]?))))
            .unzip();
        if !wanted.is_empty() {
            let staged = self.bring(&wanted, deadline).await;
            for (i, pin) in places.into_iter().zip(staged.pins) {
                pins[i] = pin;
            }
        }
        self.core.touch(&keys);
        pins
    }
}

impl Stager for Node {
    fn stage(
        &self,
        wants: Vec<(Location, BlockKey)>,
        deadline: Duration,
    ) -> BoxFuture<'static, Vec<Option<ReadSlot>>> {
        let count = wants.len();
        let shared = self.shared.clone();
        // On the node's own runtime, as the caller may have none.
        let work = self
            .shared
            .runtime
            .spawn(async move { shared.stage(wants, deadline).await });
        Box::pin(async move {
            let nothing = || std::iter::repeat_with(|| None).take(count).collect();
            work.await.unwrap_or_else(|_| nothing())
        })
    }
}

#[cfg(test)]
mod tests;
