//! Descriptors: what an arena's owner tells other processes of each slot.
//!
//! The owner writes, others read, without a lock between them: the location word is 0 while the
//! rest may change, and comes last when a block is committed. A reader takes the word, the rest,
//! and the word again. To read a block's bytes without asking the owner, it takes the descriptor,
//! copies the bytes, takes the descriptor again, and compares: equal descriptors and the right
//! checksum prove the copy. The owner itself never reads a descriptor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use flexkv_block::{ArenaLayout, Descriptor, SlotId};

use crate::mapping::Region;

/// The descriptors of a mapped arena.
#[derive(Clone)]
pub(crate) struct Descriptors {
    region: Arc<Region>,
    layout: ArenaLayout,
}

/// The words of one descriptor that have a meaning, little-endian: location, key (low, high),
/// checksum.
#[repr(C)]
struct Words {
    location: AtomicU64,
    key: [AtomicU64; 2],
    checksum: AtomicU64,
}

impl Descriptors {
    /// The descriptors in `region`, whose file has the given layout and at least its size.
    pub(crate) fn new(region: Arc<Region>, layout: ArenaLayout) -> Self {
        assert!(layout.file_bytes() <= region.len(), "layout exceeds file");
        Self { region, layout }
    }

    /// Says that the slot holds this block.
    pub(crate) fn show(&self, block: Descriptor) {
        let Some(words) = self.words(block.location.slot) else {
            return;
        };
        let [location, low, high, checksum] = block.to_words().map(u64::to_le);
        words.key[0].store(low, Ordering::Relaxed);
        words.key[1].store(high, Ordering::Relaxed);
        words.checksum.store(checksum, Ordering::Relaxed);
        words.location.store(location, Ordering::Release);
    }

    /// Says that the slot holds no block. Whatever this thread writes to the slot afterwards is
    /// seen by others no sooner than this.
    pub(crate) fn hide(&self, slot: SlotId) {
        if let Some(words) = self.words(slot) {
            words.location.store(0, Ordering::Relaxed);
            fence(Ordering::Release);
        }
    }

    /// What the slot holds; `None` if nothing, if it is changing, or if there is no such slot.
    pub(crate) fn get(&self, slot: SlotId) -> Option<Descriptor> {
        let words = self.words(slot)?;
        // Sees whatever was copied before this call no later than the word.
        fence(Ordering::Acquire);
        let word = words.location.load(Ordering::Acquire);
        let low = words.key[0].load(Ordering::Relaxed);
        let high = words.key[1].load(Ordering::Relaxed);
        let checksum = words.checksum.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let same = words.location.load(Ordering::Relaxed) == word;
        let words = [word, low, high, checksum].map(u64::from_le);
        Descriptor::from_words(words, slot).filter(|_| same)
    }

    fn words(&self, slot: SlotId) -> Option<&Words> {
        let offset = self.layout.descriptor_offset(slot)?;
        // SAFETY: the descriptor lies inside the mapping (checked in `new`), which `self` keeps; it
        // is aligned, as the mapping begins at a page and descriptors at multiples of 64; all of
        // its words are atomics, and every process accesses them as such.
        Some(unsafe { &*self.region.base().add(offset).cast::<Words>() })
    }
}
