//! Planted bugs: they exist so that the simulation can prove that it would find them.

use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Location};
use flexkv_ports::{BlockTier, Eviction, PinRefusal, ReadSlot, TierShape, TierUsage, WriteSlot};

/// A bug to plant into every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// A tier that serves whatever lies in the slot now, without comparing generation and key.
    SkipGenerationCheck,
}

impl Plant {
    /// Wraps a tier with the bug.
    pub(crate) fn wrap(self, tier: Arc<dyn BlockTier>) -> Arc<dyn BlockTier> {
        match self {
            Self::SkipGenerationCheck => Arc::new(Forgetful::new(tier)),
        }
    }
}

/// A tier that remembers, per slot, only what was committed last.
struct Forgetful {
    inner: Arc<dyn BlockTier>,
    latest: std::sync::Mutex<std::collections::BTreeMap<u32, (Location, BlockKey)>>,
}

impl Forgetful {
    fn new(inner: Arc<dyn BlockTier>) -> Self {
        Self {
            inner,
            latest: std::sync::Mutex::default(),
        }
    }

    fn latest(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<u32, (Location, BlockKey)>> {
        self.latest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl BlockTier for Forgetful {
    fn shape(&self) -> TierShape {
        self.inner.shape()
    }

    fn free_slots(&self) -> usize {
        self.inner.free_slots()
    }

    fn usage(&self) -> TierUsage {
        self.inner.usage()
    }

    fn reserve(&self) -> Option<WriteSlot> {
        self.inner.reserve()
    }

    fn commit(&self, filled: WriteSlot, key: BlockKey, checksum: Checksum) -> Location {
        let location = self.inner.commit(filled, key, checksum);
        self.latest().insert(location.slot.0, (location, key));
        location
    }

    fn pin(&self, location: Location, _key: BlockKey) -> Result<ReadSlot, PinRefusal> {
        let Some((location, key)) = self.latest().get(&location.slot.0).copied() else {
            return Err(PinRefusal::Stale);
        };
        self.inner.pin(location, key)
    }

    fn evict(&self, location: Location) -> Eviction {
        self.inner.evict(location)
    }
}
