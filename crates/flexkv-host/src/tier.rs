//! The tier on top of an arena that this process owns. Every call is O(1); only the free list is
//! shared between slots, and it takes no lock.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use flexkv_block::{
    ArenaLayout, BlockKey, Checksum, Descriptor, Location, NamespaceId, SlotId, Tier,
};
use flexkv_ports::{
    BlockTier, Eviction, Memory, MemorySlice, PinRefusal, ReadSlot, SlotOwner, TierShape,
    TierUsage, WriteSlot,
};

use crate::HostError;
use crate::descriptor::Descriptors;
use crate::mapping::Mapping;
use crate::slot::{Slot, Use};

/// What an arena is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Number of slots.
    pub slots: u32,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The namespace whose blocks it is for, so that an engine of another one notices.
    pub namespace: NamespaceId,
    /// A random number that names the arena.
    pub arena: u64,
    /// Ask for huge pages. If the kernel has none, the arena works with ordinary ones.
    pub huge_pages: bool,
    /// Take all memory now. Otherwise each page is taken at its first use, when a machine without
    /// memory can only kill a process.
    pub populate: bool,
}

/// A [`BlockTier`] in an arena that other processes can map. Clones are the same tier.
#[derive(Clone)]
pub struct HostTier {
    inner: Arc<Inner>,
}

struct Inner {
    mapping: Arc<Mapping>,
    layout: ArenaLayout,
    descriptors: Descriptors,
    slots: Box<[Slot]>,
    /// First in, first out: a stale reader's slot is refilled as late as possible.
    free: ArrayQueue<SlotId>,
    huge_bytes: usize,
}

impl HostTier {
    /// Makes a new arena, all slots free.
    pub fn create(config: &HostConfig) -> Result<Self, HostError> {
        let layout = ArenaLayout::new(
            config.arena,
            config.namespace,
            config.slots,
            config.block_bytes as u64,
            machine_memory(),
        )?;
        let mapping = Arc::new(Mapping::create(layout.file_bytes())?);
        let mut huge_bytes = 0;
        if config.huge_pages {
            mapping.use_huge_pages();
        }
        if config.populate {
            if config.huge_pages {
                huge_bytes = mapping.populate_huge();
            }
            mapping.populate()?;
        }
        let free = ArrayQueue::new(config.slots as usize);
        for slot in 0..config.slots {
            put_back(&free, SlotId(slot));
        }
        let inner = Inner {
            descriptors: Descriptors::new(mapping.region().clone(), layout),
            slots: (0..config.slots).map(|_| Slot::default()).collect(),
            mapping,
            layout,
            free,
            huge_bytes,
        };
        inner
            .slice(0, layout.encode().len())
            .write(0, &layout.encode());
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The arena's layout.
    pub fn layout(&self) -> &ArenaLayout {
        &self.inner.layout
    }

    /// The arena's file, for passing it to another process, which opens it as a
    /// [`crate::MappedArena`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.mapping.file()
    }

    /// The arena's file, opened for reading alone.
    pub(crate) fn read_only_file(&self) -> Result<OwnedFd, HostError> {
        self.inner.mapping.read_only_file()
    }

    /// The arena's memory, the whole file.
    pub fn memory(&self) -> Arc<dyn Memory> {
        self.inner.mapping.clone()
    }

    /// How many bytes of the memory, from its beginning, were put on huge pages when it was taken.
    pub fn huge_bytes(&self) -> usize {
        self.inner.huge_bytes
    }
}

/// Bytes of memory that the machine has.
fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// The list has room for all slots and a slot has one owner, so there is always room.
fn put_back(free: &ArrayQueue<SlotId>, slot: SlotId) {
    let put = free.push(slot);
    assert!(put.is_ok(), "slot {} is on the free list twice", slot.0);
}

impl Inner {
    fn slice(&self, offset: usize, len: usize) -> MemorySlice {
        MemorySlice::new(self.mapping.clone(), offset, len)
            .unwrap_or_else(|| unreachable!("the layout lies inside the mapping"))
    }

    fn bytes(&self, slot: SlotId) -> MemorySlice {
        let offset = self.layout.payload_offset(slot);
        let offset = offset.unwrap_or_else(|| unreachable!("slot {} exists", slot.0));
        self.slice(offset, self.layout.block_bytes())
    }

    /// The slot of a location that someone else gave.
    fn slot(&self, location: Location) -> Option<&Slot> {
        let slot = self.slots.get(location.slot.0 as usize);
        slot.filter(|_| location.tier == Tier::Host)
    }
}

impl BlockTier for HostTier {
    fn shape(&self) -> TierShape {
        TierShape {
            tier: Tier::Host,
            slots: self.inner.layout.slots(),
            block_bytes: self.inner.layout.block_bytes(),
        }
    }

    fn free_slots(&self) -> usize {
        self.inner.free.len()
    }

    fn usage(&self) -> TierUsage {
        let mut usage = TierUsage::default();
        for slot in &self.inner.slots {
            match slot.used_for() {
                Use::Nothing => usage.free += 1,
                Use::Filling => usage.filling += 1,
                Use::Block { pinned } => {
                    usage.blocks += 1;
                    usage.pinned += usize::from(pinned);
                }
            }
        }
        usage
    }

    fn reserve(&self) -> Option<WriteSlot> {
        let slot = self.inner.free.pop()?;
        self.inner.slots[slot.0 as usize].reserve();
        let bytes = self.inner.bytes(slot);
        Some(WriteSlot::new(slot, bytes, self.inner.clone()))
    }

    fn commit(&self, filled: WriteSlot, key: BlockKey, checksum: Checksum) -> Location {
        let here = filled.bytes().memory().base() == self.inner.mapping.base();
        assert!(here, "{filled:?} is a slot of another tier");
        let id = filled.into_slot();
        let slot = &self.inner.slots[id.0 as usize];
        let location = Location {
            tier: Tier::Host,
            slot: id,
            generation: slot.next_generation(),
        };
        // Shown while the slot still is ours, so that no eviction can come in between.
        self.inner.descriptors.show(Descriptor {
            location,
            key,
            checksum,
        });
        slot.commit(key, checksum);
        location
    }

    fn pin(&self, location: Location, key: BlockKey) -> Result<ReadSlot, PinRefusal> {
        let checksum = self
            .inner
            .slot(location)
            .and_then(|slot| slot.pin(location.generation, key))
            .ok_or(PinRefusal::Stale)?;
        let bytes = self.inner.bytes(location.slot);
        let owner = self.inner.clone();
        Ok(ReadSlot::new(location, key, checksum, bytes, owner))
    }

    fn evict(&self, location: Location) -> Eviction {
        let Some(slot) = self.inner.slot(location) else {
            return Eviction::Stale;
        };
        let eviction = slot.evict(location.generation);
        if eviction == Eviction::Done {
            self.inner.descriptors.hide(location.slot);
            put_back(&self.inner.free, location.slot);
        }
        eviction
    }
}

impl SlotOwner for Inner {
    fn abandon(&self, slot: SlotId) {
        self.slots[slot.0 as usize].abandon();
        put_back(&self.free, slot);
    }

    fn unpin(&self, slot: SlotId) {
        self.slots[slot.0 as usize].unpin();
    }
}

impl std::fmt::Debug for HostTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTier({:?})", self.inner.layout)
    }
}

#[cfg(test)]
mod tests;
