//! The seams: the traits through which the node reaches memory, metadata store, peers and engines.
//!
//! Each trait has here its value types, an in-memory implementation, decorators that make it
//! faulty or slow, and one conformance suite that every implementation runs.
//!
//! This crate knows nothing of Redis, sockets, disks or how the node decides anything.

mod cache;
pub mod conformance;
mod faulty;
mod heap;
mod memory;
mod metadata;
mod remembered;
mod removals;
mod staged;
mod suspects;
mod tier;
mod transport;

pub use cache::{
    BlockView, CacheError, Filled, KvCache, LoadLimits, LoadStatus, Loaded, PrefixHit, StoreGrant,
    Ticket,
};
pub use faulty::{
    Faults, FaultyStagedTier, FaultyStore, FaultyTransport, StagedFaults, StoreFaults,
    TransportFaults,
};
pub use futures_util::future::BoxFuture;
pub use heap::{
    HeapCache, HeapHub, HeapMemory, HeapStagedTier, HeapStore, HeapTier, HeapTransport,
};
pub use memory::{Memory, MemorySlice, PastCaches, RunningChecksum, copy_past_caches, prefetch};
pub use metadata::{LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError};
pub use remembered::Remembered;
pub use removals::{RemovalFeed, Removals, Removed};
pub use staged::{ReadRefusal, StagedBlock, StagedRead, StagedTier, Stager, WriteRefusal};
pub use suspects::{Suspect, SuspectReceiver, SuspectSender, suspects};
pub use tier::{
    BlockTier, Eviction, PinRefusal, ReadSlot, SlotOwner, TierShape, TierUsage, WriteSlot,
};
pub use transport::{FetchOutcome, Fetched, Transport, Want};
