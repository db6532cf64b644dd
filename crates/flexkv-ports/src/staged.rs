//! A staged tier: storage that nobody reads in place. A block is written from a pinned slot of
//! memory and read into a slot of memory, each by one asynchronous transfer.
//!
//! The tier knows which bytes are where and whether they may be overwritten. Which block is worth
//! writing, and which should go, is decided elsewhere.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location};
use futures_util::future::BoxFuture;

use crate::{Eviction, ReadSlot, TierShape, WriteSlot};

/// A block of a staged tier, as its owner has to remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedBlock {
    /// Which block it is.
    pub key: BlockKey,
    /// The block before it in its prompt; `None` for the first one.
    pub parent: Option<BlockKey>,
    /// Where it lies.
    pub location: Location,
}

/// Why a block was not written. Nothing of it is in the tier then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    /// No slot is free.
    Full,
    /// As many writes wait already as the tier lets wait.
    Busy,
    /// The storage reported an error; the slot is not used again.
    Failed,
}

/// Why a block was not read. Except for `Stale` and `Busy` the tier has dropped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRefusal {
    /// The slot holds another generation or another key, or nothing.
    Stale,
    /// As many reads wait already as the tier lets wait.
    Busy,
    /// The bytes read are not those that were written.
    Corrupt,
    /// The storage reported an error.
    Failed,
}

/// What became of a read: the slot comes back whatever happened.
#[derive(Debug)]
pub struct StagedRead {
    /// The slot that was to be filled.
    pub into: WriteSlot,
    /// The checksum of the verified bytes now in it, or why there are none.
    pub outcome: Result<Checksum, ReadRefusal>,
}

/// Blocks in slots of equal size on storage. Calls return at once; futures may be dropped at any
/// time, which abandons the result and not the transfer.
pub trait StagedTier: Send + Sync + 'static {
    /// The tier's size now. Slots that failed do not count any more.
    fn shape(&self) -> TierShape;

    /// Slots that can be written to without evicting a block.
    fn free_slots(&self) -> usize;

    /// Takes the list of blocks that were in the tier when it was opened: those first that were written
    /// or used longest ago, as far as that was kept.
    fn recovered(&self) -> Vec<StagedBlock>;

    /// Takes the list of blocks that were lost since the last call, without anyone having asked for
    /// them, because their storage failed.
    fn lost(&self) -> Vec<(BlockKey, Location)>;

    /// Writes a copy of `block`, which comes after `parent` in its prompt, with the checksum that it
    /// was committed with: bytes that changed since are refused when they are read. Once the future is
    /// ready the block survives the end of the process.
    ///
    /// # Panics
    /// If `block` has not the size of the tier's blocks.
    fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> BoxFuture<'static, Result<Location, WriteRefusal>>;

    /// Reads the block at `location` into a slot of memory and verifies it there.
    ///
    /// # Panics
    /// If `into` has not the size of the tier's blocks.
    fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> BoxFuture<'static, StagedRead>;

    /// Notes that blocks were used, the last one last, so that the order outlives the process. A hint:
    /// it may be lost, and blocks that are not here do no harm.
    fn used(&self, keys: &[BlockKey]);

    /// Gives the slot up unless it is being read. Later reads of this location are refused.
    fn evict(&self, location: Location) -> Eviction;

    /// Whatever was written before the call survives a loss of power once the future is ready;
    /// `false` if the storage refused that.
    fn sync(&self) -> BoxFuture<'static, bool>;
}

/// Brings blocks into memory for peers that know them to lie in a slower tier.
pub trait Stager: Send + Sync + 'static {
    /// Holds the blocks for reading, those of a slower tier once they are in memory. One answer per
    /// want, in order; `None` for a block that is not there, or not in memory within `deadline`.
    fn stage(
        &self,
        wants: Vec<(Location, BlockKey)>,
        deadline: Duration,
    ) -> BoxFuture<'static, Vec<Option<ReadSlot>>>;
}
