//! The cache as an engine sees it: match a prefix, load it, store what was computed, release.
//!
//! The node implements [`KvCache`] in its own process and the engine client implements it over the
//! local socket, so engines, tests and the demo speak one interface. The engine computes keys and
//! copies bytes; it knows nothing of peers, tiers or the index.
//!
//! A miss is a value: whatever is broken, the answer is a shorter prefix. [`CacheError`] means that
//! the caller asked something senseless or that the cache itself is gone.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, NamespaceId};
use futures_util::future::BoxFuture;
use thiserror::Error;

use crate::{MemorySlice, Removals};

/// Names what a caller holds in the cache, until released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How much of a prompt exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixHit {
    /// To load it, or to release it.
    pub ticket: Ticket,
    /// Leading blocks that the cluster holds, as far as this node knows.
    pub blocks: usize,
    /// How many of those this node holds itself.
    pub local: usize,
}

/// A block that was verified and is pinned: readable until its ticket is released.
#[derive(Clone, Debug)]
pub struct BlockView {
    /// Which block.
    pub key: BlockKey,
    /// Checksum of its bytes.
    pub checksum: Checksum,
    /// Its bytes.
    pub bytes: MemorySlice,
}

/// The leading blocks that could be loaded.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Verified blocks, in prompt order without gap; perhaps fewer than asked for.
    pub blocks: Vec<BlockView>,
    /// How many of them this node held itself.
    pub local: usize,
    /// How many were fetched from peers.
    pub remote: usize,
}

/// What a load may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// For how long it may go on.
    pub deadline: Duration,
    /// How long the engine takes to compute a block, if it knows: what would take longer to bring is
    /// left to it. Never stopped for that reason if `None`.
    pub recompute: Option<Duration>,
}

impl From<Duration> for LoadLimits {
    /// A deadline alone.
    fn from(deadline: Duration) -> Self {
        Self {
            deadline,
            recompute: None,
        }
    }
}

/// Progress of a load.
#[derive(Clone, Debug)]
pub enum LoadStatus {
    /// Still fetching.
    Pending,
    /// Finished; the blocks stay pinned until the ticket is released.
    Ready(Loaded),
}

/// Where to put the blocks that an engine computed.
#[derive(Clone, Debug)]
pub struct StoreGrant {
    /// To commit or release.
    pub ticket: Ticket,
    /// Per block asked for, in order: where to write it, or `None` if it need not be or cannot be
    /// stored (present already, or no slot could be freed).
    pub slots: Vec<Option<MemorySlice>>,
}

/// A granted slot that the engine has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Index into [`StoreGrant::slots`].
    pub index: usize,
    /// Checksum of the bytes written.
    pub checksum: Checksum,
}

/// Why the cache did not take a call, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CacheError {
    /// The node is gone or shuts down. Go on without a cache; attach again later.
    #[error("the cache node is gone: {reason}")]
    Gone {
        /// What happened.
        reason: String,
    },
    /// The call makes no sense; the caller has a bug or a wrong configuration.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The ticket was never given, or is released.
    #[error("ticket {} is not known", .ticket.0)]
    UnknownTicket {
        /// The ticket given.
        ticket: Ticket,
    },
}

/// The cache, as an engine uses it.
pub trait KvCache: Send + Sync + 'static {
    /// The namespace whose blocks this cache holds.
    fn namespace(&self) -> NamespaceId;

    /// Bytes of every block.
    fn block_bytes(&self) -> usize;

    /// How many leading blocks of `keys` exist in the cluster. Touches local memory only.
    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>>;

    /// Starts bringing the first `blocks` blocks of a match here, within `limits`; what has been
    /// verified by then is the result.
    fn load(
        &self,
        ticket: Ticket,
        blocks: usize,
        limits: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>>;

    /// How far a load is.
    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>>;

    /// Waits until a load has finished; it does so by its deadline.
    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>>;

    /// Asks for slots for `keys[first..]`, which the engine computed; `keys[..first]` is the prefix
    /// before them.
    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>>;

    /// Makes filled slots of a grant blocks of the cache, for the whole cluster. Slots not named
    /// stay granted until the ticket is released.
    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// Gives up everything the ticket holds: a match, a running load (which is cancelled), pins,
    /// granted slots. Releasing twice is an [`CacheError::UnknownTicket`].
    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>>;

    /// News of blocks that this cache itself no longer holds, from now on. They are hints, and may
    /// come a little later than the removal.
    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>>;
}
