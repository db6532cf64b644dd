//! Bringing blocks from the staged tier into memory: for a load here, or for a peer that asks.
//!
//! Every block is verified as it is read. What fails is dropped from the index and counted; to the
//! caller it is a block that is not there. Knows nothing of who is behind a peer's request.

use std::time::Duration;

use flexkv_block::{BlockKey, Location, Tier};
use flexkv_ports::{BoxFuture, ReadRefusal, ReadSlot, StagedRead, Stager, WriteSlot};
use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, timeout_at};

use crate::counters::Miss;
use crate::{Node, Shared};

/// Reads of one request under way at a time.
const LANES: usize = 256;

/// What became of a request: a pin for each block that is in memory now.
pub(crate) struct Staged {
    pub(crate) pins: Vec<Option<ReadSlot>>,
    /// Why not all are, if not all are.
    pub(crate) reason: Option<Miss>,
}

impl Shared {
    /// Brings blocks of the staged tier into memory. The first ones get slots first.
    pub(crate) async fn bring(&self, wanted: &[(BlockKey, Location)], deadline: Instant) -> Staged {
        let mut reason = None;
        let resets = self.core.resets();
        let slots = self
            .core
            .reserve(self.now(), wanted.len(), &*self.tier, &self.counters);
        if slots.len() < wanted.len() {
            reason = Some(Miss::NoSpace);
        }
        let mut arrived = Vec::with_capacity(slots.len());
        if let Some(staged) = &self.staged {
            let read = |(i, slot): (usize, WriteSlot)| {
                let (key, location) = wanted[i];
                let reading = staged.read(location, key, slot);
                async move { (i, reading.await) }
            };
            let jobs = slots.into_iter().enumerate();
            let mut reads = stream::iter(jobs).map(read).buffer_unordered(LANES);
            loop {
                let Ok(next) = timeout_at(deadline, reads.next()).await else {
                    self.counters.staged_late.increment(1);
                    reason = Some(Miss::Deadline);
                    break;
                };
                let Some((i, StagedRead { into, outcome })) = next else {
                    break;
                };
                match outcome {
                    Ok(checksum) => arrived.push((i, into, checksum)),
                    Err(refusal) => reason = Some(self.not_read(wanted[i], refusal)),
                }
            }
        }
        self.counters.staged_reads.increment(arrived.len() as u64);
        arrived.sort_unstable_by_key(|(i, ..)| *i);
        let read = arrived.into_iter();
        let read = read.map(|(i, slot, checksum)| (wanted[i].0, slot, checksum));
        self.core
            .promote(self.now(), read.collect(), &*self.tier, resets);
        let keys: Vec<BlockKey> = wanted.iter().map(|(key, _)| *key).collect();
        let pins = self.pin_all(&keys);
        Staged { pins, reason }
    }

    /// Pins of those blocks that are in memory.
    fn pin_all(&self, keys: &[BlockKey]) -> Vec<Option<ReadSlot>> {
        let found = self.core.find(keys).into_iter().zip(keys);
        found
            .map(|(location, key)| self.tier.pin(location?, *key).ok())
            .collect()
    }

    /// A block could not be read: what the tier has dropped is forgotten.
    fn not_read(&self, block: (BlockKey, Location), refusal: ReadRefusal) -> Miss {
        let counters = &self.counters;
        let (counter, miss) = match refusal {
            ReadRefusal::Busy => (&counters.staged_busy, Miss::NoSpace),
            ReadRefusal::Stale => (&counters.staged_stale, Miss::Stale),
            ReadRefusal::Corrupt => (&counters.staged_corrupt, Miss::Corrupt),
            ReadRefusal::Failed => (&counters.staged_read_failed, Miss::Failed),
        };
        counter.increment(1);
        if refusal != ReadRefusal::Busy {
            self.core.forget_staged(self.now(), &[block]);
        }
        miss
    }

    /// Holds blocks for a peer.
    async fn stage(
        &self,
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
