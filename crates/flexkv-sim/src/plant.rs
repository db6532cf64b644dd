//! Planted bugs: they exist so that the simulation can prove that it would find them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Location};
use flexkv_node::NodeConfig;
use flexkv_ports::{
    BlockTier, Eviction, MetadataStore, PinRefusal, ReadSlot, TierShape, TierUsage, WriteSlot,
};

mod store;

use self::store::{PlantedStore, StoreBug};

/// A bug to plant, one for each thing that a checker may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// A tier that serves whatever lies in the slot now, without comparing generation and key: bytes.
    SkipGenerationCheck,
    /// Nodes do not publish what they remove: owners.
    ForgetRemovals,
    /// Nodes do not publish what they add later than in a checkpoint: owners.
    ForgetAdditions,
    /// Lists of members are up to a minute old: convergence.
    StaleMembers,
    /// A store that cannot be reached counts as one without members: serving.
    NobodyOnError,
    /// What waits for the store has no bound: bounds.
    EndlessQueue,
    /// Old logs never expire: bounds.
    ImmortalLogs,
    /// Nobody releases what an engine that died had in its hands: leaks.
    ForgetTickets,
    /// The network's delays hang on chance that is not of the seed: repeat.
    Unseeded,
}

impl Plant {
    /// The tier with the bug, if it is one of a tier.
    pub(crate) fn tier(self, tier: Arc<dyn BlockTier>) -> Arc<dyn BlockTier> {
        match self {
            Self::SkipGenerationCheck => Arc::new(Forgetful::new(tier)),
            _ => tier,
        }
    }

    /// The store with the bug, if it is one of the store.
    pub(crate) fn store(self, store: Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore> {
        let bug = match self {
            Self::ForgetRemovals => StoreBug::ForgetRemovals,
            Self::ForgetAdditions => StoreBug::ForgetAdditions,
            Self::StaleMembers => StoreBug::StaleMembers,
            Self::NobodyOnError => StoreBug::NobodyOnError,
            Self::ImmortalLogs => StoreBug::ImmortalLogs,
            _ => return store,
        };
        Arc::new(PlantedStore::new(store, bug))
    }

    /// The configuration with the bug, if it is one of the configuration.
    pub(crate) fn configure(self, config: NodeConfig) -> NodeConfig {
        match self {
            Self::EndlessQueue => NodeConfig {
                log_queue_bytes: usize::MAX,
                ..config
            },
            _ => config,
        }
    }

    /// Microseconds by which a message is late.
    pub(crate) fn extra_delay(self) -> u64 {
        match self {
            Self::Unseeded => RandomState::new().hash_one(0) % 1_000_000,
            _ => 0,
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
