//! A tier on ordinary heap memory: a table of slots under one lock, and a first-in, first-out
//! free list. Knows nothing of files, sharing or huge pages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flexkv_block::{BlockKey, Checksum, Generation, Location, SlotId};

use super::HeapMemory;
use crate::{
    BlockTier, Eviction, Memory, MemorySlice, PinRefusal, ReadSlot, SlotOwner, TierShape,
    TierUsage, WriteSlot,
};

/// Slots begin at multiples of this many bytes.
const SLOT_ALIGN: usize = 64;

/// A [`BlockTier`] in heap memory. Clones are the same tier.
#[derive(Clone)]
pub struct HeapTier {
    inner: Arc<Inner>,
}

struct Inner {
    shape: TierShape,
    stride: usize,
    memory: Arc<HeapMemory>,
    table: Mutex<Table>,
}

struct Table {
    slots: Vec<Slot>,
    free: VecDeque<SlotId>,
}

struct Slot {
    /// Of the last content; `None` before the first.
    generation: Option<Generation>,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    Free,
    Filling,
    Block {
        key: BlockKey,
        checksum: Checksum,
        pins: u32,
    },
}

impl HeapTier {
    /// A tier of the given shape, all slots free.
    ///
    /// # Panics
    /// If the shape has more bytes than can be addressed.
    pub fn new(shape: TierShape) -> Self {
        let stride = shape.block_bytes.next_multiple_of(SLOT_ALIGN);
        let bytes = stride
            .checked_mul(shape.slots as usize)
            .unwrap_or_else(|| panic!("{shape:?} exceeds the address space"));
        let slots = (0..shape.slots)
            .map(|_| Slot {
                generation: None,
                content: Content::Free,
            })
            .collect();
        let free = (0..shape.slots).map(SlotId).collect();
        let inner = Inner {
            shape,
            stride,
            memory: Arc::new(HeapMemory::new(bytes)),
            table: Mutex::new(Table { slots, free }),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self, slot: SlotId) -> MemorySlice {
        let offset = slot.0 as usize * self.stride;
        MemorySlice::new(self.memory.clone(), offset, self.shape.block_bytes)
            .unwrap_or_else(|| unreachable!("slot {} is inside the tier", slot.0))
    }
}

impl Table {
    /// The slot that holds the block at `location`, if it does.
    fn block(&mut self, shape: &TierShape, location: Location) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(location.slot.0 as usize)?;
        let held = matches!(slot.content, Content::Block { .. })
            && location.tier == shape.tier
            && slot.generation == Some(location.generation);
        held.then_some(slot)
    }

    fn release(&mut self, slot: SlotId) {
        self.slots[slot.0 as usize].content = Content::Free;
        self.free.push_back(slot);
    }
}

impl BlockTier for HeapTier {
    fn shape(&self) -> TierShape {
        self.inner.shape
    }

    fn free_slots(&self) -> usize {
        self.inner.table().free.len()
    }

    fn usage(&self) -> TierUsage {
        let mut usage = TierUsage::default();
        for slot in &self.inner.table().slots {
            match slot.content {
                Content::Free => usage.free += 1,
                Content::Filling => usage.filling += 1,
                Content::Block { pins, .. } => {
                    usage.blocks += 1;
                    usage.pinned += usize::from(pins > 0);
                }
            }
        }
        usage
    }

    fn reserve(&self) -> Option<WriteSlot> {
        let mut table = self.inner.table();
        let slot = table.free.pop_front()?;
        table.slots[slot.0 as usize].content = Content::Filling;
        drop(table);
        let bytes = self.inner.bytes(slot);
        Some(WriteSlot::new(slot, bytes, self.inner.clone()))
    }

    fn commit(&self, filled: WriteSlot, key: BlockKey, checksum: Checksum) -> Location {
        let here = filled.bytes().memory().base() == self.inner.memory.base();
        assert!(here, "{filled:?} is a slot of another tier");
        let mut table = self.inner.table();
        let id = filled.into_slot();
        let slot = &mut table.slots[id.0 as usize];
        let generation = slot.generation.map_or(Generation::FIRST, Generation::next);
        slot.generation = Some(generation);
        slot.content = Content::Block {
            key,
            checksum,
            pins: 0,
        };
        Location {
            tier: self.inner.shape.tier,
            slot: id,
            generation,
        }
    }

    fn pin(&self, location: Location, key: BlockKey) -> Result<ReadSlot, PinRefusal> {
        let mut table = self.inner.table();
        let Some(Slot {
            content:
                Content::Block {
                    key: held,
                    checksum,
                    pins,
                },
            ..
        }) = table.block(&self.inner.shape, location)
        else {
            return Err(PinRefusal::Stale);
        };
        if *held != key {
            return Err(PinRefusal::Stale);
        }
        *pins += 1;
        let checksum = *checksum;
        drop(table);
        let bytes = self.inner.bytes(location.slot);
        let owner = self.inner.clone();
        Ok(ReadSlot::new(location, key, checksum, bytes, owner))
    }

    fn evict(&self, location: Location) -> Eviction {
        let mut table = self.inner.table();
        match table.block(&self.inner.shape, location) {
            Some(Slot {
                content: Content::Block { pins: 0, .. },
                ..
            }) => {
                table.release(location.slot);
                Eviction::Done
            }
            Some(_) => Eviction::Pinned,
            None => Eviction::Stale,
        }
    }
}

impl SlotOwner for Inner {
    fn abandon(&self, slot: SlotId) {
        self.table().release(slot);
    }

    fn unpin(&self, slot: SlotId) {
        if let Content::Block { pins, .. } = &mut self.table().slots[slot.0 as usize].content {
            *pins -= 1;
        }
    }
}

impl std::fmt::Debug for HeapTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeapTier({:?})", self.inner.shape)
    }
}
