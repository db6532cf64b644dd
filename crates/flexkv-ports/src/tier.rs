//! A tier: slots of equal size, each free, being filled, or holding one block of some generation.
//!
//! The tier knows which bytes are where and whether they may be reused. Which block should go, and
//! who else has it, is decided elsewhere.

use std::fmt;
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Location, SlotId, Tier};

use crate::MemorySlice;

/// Size of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierShape {
    /// The kind of storage.
    pub tier: Tier,
    /// Number of slots.
    pub slots: u32,
    /// Bytes of one block; every block fills its slot.
    pub block_bytes: usize,
}

/// What the slots of a tier are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Slots that hold nothing.
    pub free: usize,
    /// Slots being filled: granted to an engine, or waiting for bytes of a peer.
    pub filling: usize,
    /// Slots that hold a block.
    pub blocks: usize,
    /// How many of those blocks are being read.
    pub pinned: usize,
}

/// Why a block cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinRefusal {
    /// The slot holds another generation or another key, or nothing.
    Stale,
}

/// What became of a request to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The slot is free.
    Done,
    /// Someone reads the block; nothing was changed.
    Pinned,
    /// The block was not there.
    Stale,
}

/// Blocks in slots of equal size. All calls return at once.
pub trait BlockTier: Send + Sync + 'static {
    /// The tier's size.
    fn shape(&self) -> TierShape;

    /// Slots that hold nothing and are not being filled.
    fn free_slots(&self) -> usize;

    /// What the slots are used for just now. Looks at every one of them: for reports alone.
    fn usage(&self) -> TierUsage;

    /// Takes a free slot to fill; `None` if there is none. Nothing is ever evicted by itself.
    fn reserve(&self) -> Option<WriteSlot>;

    /// Makes the filled slot readable as block `key` with a new generation. `checksum` must be that
    /// of the bytes written. Until then nobody can read the slot.
    ///
    /// # Panics
    /// If `filled` is a slot of another tier.
    fn commit(&self, filled: WriteSlot, key: BlockKey, checksum: Checksum) -> Location;

    /// Holds the block at `location` for reading: until the returned slot is dropped, its bytes
    /// stay what they are. Refused unless slot, generation and the whole key match.
    fn pin(&self, location: Location, key: BlockKey) -> Result<ReadSlot, PinRefusal>;

    /// Frees the slot unless the block is pinned. Later pins of this location are refused.
    fn evict(&self, location: Location) -> Eviction;
}

/// How a tier takes slots back; implemented by tiers, called by [`WriteSlot`] and [`ReadSlot`].
pub trait SlotOwner: Send + Sync + 'static {
    /// A reserved slot was given up without a commit.
    fn abandon(&self, slot: SlotId);

    /// A pin of `slot` ended.
    fn unpin(&self, slot: SlotId);
}

/// A slot being filled, by one owner. Dropping it frees the slot; its bytes never become visible.
pub struct WriteSlot {
    slot: SlotId,
    bytes: MemorySlice,
    owner: Option<Arc<dyn SlotOwner>>,
}

impl WriteSlot {
    /// Made by tiers: `slot` with its `bytes`, given back to `owner` when dropped.
    pub fn new(slot: SlotId, bytes: MemorySlice, owner: Arc<dyn SlotOwner>) -> Self {
        Self {
            slot,
            bytes,
            owner: Some(owner),
        }
    }

    /// The slot's number.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Where to write.
    pub fn bytes(&self) -> &MemorySlice {
        &self.bytes
    }

    /// Made for tiers: ends the guard without giving the slot back, as part of a commit.
    pub fn into_slot(mut self) -> SlotId {
        self.owner = None;
        self.slot
    }
}

impl Drop for WriteSlot {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.abandon(self.slot);
        }
    }
}

impl fmt::Debug for WriteSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteSlot({})", self.slot.0)
    }
}

/// A pinned block. Dropping it ends the pin.
pub struct ReadSlot {
    location: Location,
    key: BlockKey,
    checksum: Checksum,
    bytes: MemorySlice,
    owner: Arc<dyn SlotOwner>,
}

impl ReadSlot {
    /// Made by tiers: the pinned block, unpinned at `owner` when dropped.
    pub fn new(
        location: Location,
        key: BlockKey,
        checksum: Checksum,
        bytes: MemorySlice,
        owner: Arc<dyn SlotOwner>,
    ) -> Self {
        Self {
            location,
            key,
            checksum,
            bytes,
            owner,
        }
    }

    /// Where the block lies.
    pub fn location(&self) -> Location {
        self.location
    }

    /// Which block it is.
    pub fn key(&self) -> BlockKey {
        self.key
    }

    /// The checksum it was committed with.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Its bytes.
    pub fn bytes(&self) -> &MemorySlice {
        &self.bytes
    }

    /// Whether the bytes still are those that were committed.
    pub fn verify(&self) -> bool {
        self.bytes.checksum() == self.checksum
    }
}

impl Drop for ReadSlot {
    fn drop(&mut self) {
        self.owner.unpin(self.location.slot);
    }
}

impl fmt::Debug for ReadSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadSlot({:?}, {})", self.location, self.key)
    }
}
