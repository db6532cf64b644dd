//! The staged tier's decorator: delays transfers, hangs, refuses, and loses blocks as a bad device does.
//!
//! It cannot damage bytes before the inner tier verifies them, so it reports what that verification
//! would have reported.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Location};
use futures_util::future::BoxFuture;

use super::store::pause;
use super::{Faults, StagedFaults};
use crate::{
    Eviction, ReadRefusal, ReadSlot, StagedBlock, StagedRead, StagedTier, TierShape, WriteRefusal,
    WriteSlot,
};

/// A [`StagedTier`] that fails as its [`Faults`] say. Clones are the same tier.
#[derive(Debug)]
pub struct FaultyStagedTier<T> {
    inner: Arc<T>,
    faults: Faults,
}

/// What was drawn for one transfer.
struct Draw<R> {
    hang: bool,
    latency: Duration,
    refusal: Option<R>,
}

impl<T> Clone for FaultyStagedTier<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            faults: self.faults.clone(),
        }
    }
}

impl<T: StagedTier> FaultyStagedTier<T> {
    /// `inner`, failing as `faults` say.
    pub fn new(inner: T, faults: Faults) -> Self {
        let inner = Arc::new(inner);
        Self { inner, faults }
    }

    fn draw_read(&self) -> Draw<ReadRefusal> {
        self.draw(|faults| {
            vec![
                (faults.busy, ReadRefusal::Busy),
                (faults.stale, ReadRefusal::Stale),
                (faults.corrupt, ReadRefusal::Corrupt),
                (faults.failed, ReadRefusal::Failed),
            ]
        })
    }

    fn draw_write(&self) -> Draw<WriteRefusal> {
        self.draw(|faults| {
            vec![
                (faults.busy, WriteRefusal::Busy),
                (faults.failed, WriteRefusal::Failed),
            ]
        })
    }

    /// Draws once for each refusal, so that one that is turned on changes no other; the first counts.
    fn draw<R>(&self, refusals: impl FnOnce(&StagedFaults) -> Vec<(f64, R)>) -> Draw<R> {
        let mut board = self.faults.board();
        let faults = board.staged.clone();
        let drawn: Vec<Option<R>> = refusals(&faults)
            .into_iter()
            .map(|(probability, refusal)| board.happens(probability).then_some(refusal))
            .collect();
        Draw {
            hang: board.happens(faults.hang),
            latency: board.delay(&faults.latency),
            refusal: drawn.into_iter().flatten().next(),
        }
    }

    /// Waits as long as was drawn; says what was drawn to happen then.
    async fn befall<R>(&self, draw: Draw<R>) -> Option<R> {
        if draw.hang {
            self.faults.count();
            std::future::pending::<()>().await;
        }
        pause(draw.latency).await;
        if draw.refusal.is_some() {
            self.faults.count();
        }
        draw.refusal
    }
}

impl<T: StagedTier> StagedTier for FaultyStagedTier<T> {
    fn shape(&self) -> TierShape {
        self.inner.shape()
    }

    fn free_slots(&self) -> usize {
        self.inner.free_slots()
    }

    fn recovered(&self) -> Vec<StagedBlock> {
        self.inner.recovered()
    }

    fn lost(&self) -> Vec<(BlockKey, Location)> {
        self.inner.lost()
    }

    fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> BoxFuture<'static, Result<Location, WriteRefusal>> {
        let (tier, draw) = (self.clone(), self.draw_write());
        Box::pin(async move {
            match tier.befall(draw).await {
                Some(refusal) => Err(refusal),
                None => tier.inner.write(block, parent).await,
            }
        })
    }

    fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> BoxFuture<'static, StagedRead> {
        let (tier, draw) = (self.clone(), self.draw_read());
        Box::pin(async move {
            let Some(refusal) = tier.befall(draw).await else {
                return tier.inner.read(location, key, into).await;
            };
            // What is damaged or cannot be read is dropped, as the trait says.
            if matches!(refusal, ReadRefusal::Corrupt | ReadRefusal::Failed) {
                tier.inner.evict(location);
            }
            let outcome = Err(refusal);
            StagedRead { into, outcome }
        })
    }

    fn used(&self, keys: &[BlockKey]) {
        self.inner.used(keys);
    }

    fn evict(&self, location: Location) -> Eviction {
        self.inner.evict(location)
    }

    fn sync(&self) -> BoxFuture<'static, bool> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests;
