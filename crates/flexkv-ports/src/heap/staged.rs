//! A staged tier on heap memory: transfers are copies that are done at once. Knows nothing of files.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flexkv_block::{BlockKey, Location, Tier};
use futures_util::future::BoxFuture;

use crate::{
    BlockTier, Eviction, HeapTier, PinRefusal, ReadRefusal, ReadSlot, StagedBlock, StagedRead,
    StagedTier, TierShape, WriteRefusal, WriteSlot,
};

/// A [`StagedTier`] in heap memory. Clones are the same tier.
#[derive(Clone, Debug)]
pub struct HeapStagedTier {
    slots: HeapTier,
    /// In order of use.
    blocks: Arc<Mutex<Vec<StagedBlock>>>,
    recovered: Arc<Mutex<Vec<StagedBlock>>>,
    /// How often it was opened, and which time this is.
    opened: Arc<AtomicU64>,
    life: u64,
}

impl HeapStagedTier {
    /// An empty tier of `slots` blocks of `block_bytes` bytes.
    ///
    /// # Panics
    /// If that is more than can be addressed.
    pub fn new(slots: u32, block_bytes: usize) -> Self {
        let shape = TierShape {
            tier: Tier::Ssd,
            slots,
            block_bytes,
        };
        Self {
            slots: HeapTier::new(shape),
            blocks: Arc::default(),
            recovered: Arc::default(),
            opened: Arc::default(),
            life: 0,
        }
    }

    /// The same tier as one finds it after a restart: what is in it counts as recovered. What was
    /// opened before is that of a dead process: it moves no blocks any more.
    #[must_use]
    pub fn reopened(&self) -> Self {
        let found = lock(&self.blocks).clone();
        Self {
            recovered: Arc::new(Mutex::new(found)),
            life: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            ..self.clone()
        }
    }

    /// Whether it was opened again since.
    fn is_dead(&self) -> bool {
        self.opened.load(Ordering::Relaxed) != self.life
    }

    fn put(&self, block: &ReadSlot, parent: Option<BlockKey>) -> Result<Location, WriteRefusal> {
        let size = self.slots.shape().block_bytes;
        assert_eq!(block.bytes().len(), size, "{block:?} has another size");
        if self.is_dead() {
            return Err(WriteRefusal::Failed);
        }
        let slot = self.slots.reserve().ok_or(WriteRefusal::Full)?;
        slot.bytes().write_from(block.bytes());
        let location = self.slots.commit(slot, block.key(), block.checksum());
        lock(&self.blocks).push(StagedBlock {
            key: block.key(),
            parent,
            location,
        });
        Ok(location)
    }

    fn drop_block(&self, location: Location) -> Eviction {
        if self.is_dead() {
            return Eviction::Stale;
        }
        let outcome = self.slots.evict(location);
        if outcome == Eviction::Done {
            lock(&self.blocks).retain(|block| block.location != location);
        }
        outcome
    }

    fn get(&self, location: Location, key: BlockKey, into: WriteSlot) -> StagedRead {
        let size = self.slots.shape().block_bytes;
        assert_eq!(into.bytes().len(), size, "{into:?} has another size");
        let outcome = match self.slots.pin(location, key) {
            _ if self.is_dead() => Err(ReadRefusal::Failed),
            Err(PinRefusal::Stale) => Err(ReadRefusal::Stale),
            Ok(slot) => {
                into.bytes().write_from(slot.bytes());
                if into.bytes().checksum() == slot.checksum() {
                    Ok(slot.checksum())
                } else {
                    drop(slot);
                    self.drop_block(location);
                    Err(ReadRefusal::Corrupt)
                }
            }
        };
        StagedRead { into, outcome }
    }
}

impl StagedTier for HeapStagedTier {
    fn shape(&self) -> TierShape {
        self.slots.shape()
    }

    fn free_slots(&self) -> usize {
        self.slots.free_slots()
    }

    fn recovered(&self) -> Vec<StagedBlock> {
        std::mem::take(&mut *lock(&self.recovered))
    }

    fn lost(&self) -> Vec<(BlockKey, Location)> {
        Vec::new()
    }

    fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> BoxFuture<'static, Result<Location, WriteRefusal>> {
        Box::pin(std::future::ready(self.put(&block, parent)))
    }

    fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> BoxFuture<'static, StagedRead> {
        Box::pin(std::future::ready(self.get(location, key, into)))
    }

    fn used(&self, keys: &[BlockKey]) {
        let mut blocks = lock(&self.blocks);
        for key in keys {
            if let Some(at) = blocks.iter().position(|block| block.key == *key) {
                blocks[at..].rotate_left(1);
            }
        }
    }

    fn evict(&self, location: Location) -> Eviction {
        self.drop_block(location)
    }

    fn sync(&self) -> BoxFuture<'static, bool> {
        Box::pin(std::future::ready(true))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
