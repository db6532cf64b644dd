//! The state of one slot in one atomic word, so that a pin takes no lock.
//!
//! ```text
//! bits  0..32  pins
//! bits 32..60  generation of the last block, 0 before the first
//! bits 60..62  state: 0 free, 1 filling, 2 block
//! ```
//! Only `block` words are changed by more than one thread: pins come and go, and `evict` takes the
//! word from `block` without pins to `free`. A free or filling slot has one owner: the free list,
//! or a `WriteSlot`. Knows nothing of bytes and lists.

use std::sync::atomic::{AtomicU64, Ordering};

use flexkv_block::{BlockKey, Checksum, Generation};
use flexkv_ports::Eviction;

const PINS: u64 = u32::MAX as u64;
const GENERATION_SHIFT: u32 = 32;
const FILLING: u64 = 1 << 60;
const BLOCK: u64 = 2 << 60;

/// A slot's state, and key and checksum of its block.
#[derive(Default)]
pub(crate) struct Slot {
    word: AtomicU64,
    /// Low and high half. Written while the slot is filling, so constant under a pin.
    key: [AtomicU64; 2],
    checksum: AtomicU64,
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Nothing,
    Filling,
    Block { pinned: bool },
}

impl Slot {
    /// What the slot is used for just now.
    pub(crate) fn used_for(&self) -> Use {
        let word = self.word.load(Ordering::Relaxed);
        match word & (FILLING | BLOCK) {
            0 => Use::Nothing,
            FILLING => Use::Filling,
            _ => Use::Block {
                pinned: word & PINS > 0,
            },
        }
    }

    /// Free to filling. For the thread that took the slot off the free list.
    pub(crate) fn reserve(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word | FILLING, Ordering::Relaxed);
    }

    /// Filling to free. For the slot's owner, who then puts it on the free list.
    pub(crate) fn abandon(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !FILLING, Ordering::Relaxed);
    }

    /// The generation that the next block will have. For the slot's owner.
    pub(crate) fn next_generation(&self) -> Generation {
        let last = generation(self.word.load(Ordering::Relaxed));
        last.map_or(Generation::FIRST, Generation::next)
    }

    /// Filling to block, of the next generation. For the slot's owner, who owns it no longer.
    pub(crate) fn commit(&self, key: BlockKey, checksum: Checksum) {
        let word = block(self.next_generation());
        let [low, high] = halves(key);
        self.key[0].store(low, Ordering::Relaxed);
        self.key[1].store(high, Ordering::Relaxed);
        self.checksum.store(checksum.0, Ordering::Relaxed);
        // Release: whoever pins the block sees key, checksum and the bytes written.
        self.word.store(word, Ordering::Release);
    }

    /// Adds a pin to the block of this generation and key; gives its checksum.
    pub(crate) fn pin(&self, generation: Generation, key: BlockKey) -> Option<Checksum> {
        let [low, high] = halves(key);
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let held = word & !PINS == block(generation) && word & PINS != PINS;
            // The key belongs to this generation if the exchange finds the word unchanged.
            let same = self.key[0].load(Ordering::Relaxed) == low
                && self.key[1].load(Ordering::Relaxed) == high;
            if !held || !same {
                return None;
            }
            let pinned = self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Acquire,
                Ordering::Acquire,
            );
            match pinned {
                Ok(_) => return Some(Checksum(self.checksum.load(Ordering::Relaxed))),
                Err(now) => word = now,
            }
        }
    }

    /// Takes one pin away.
    pub(crate) fn unpin(&self) {
        // Release: the holder's reads happen before a refill that follows an eviction.
        let word = self.word.fetch_sub(1, Ordering::Release);
        debug_assert!(word & PINS > 0, "unpinned more often than pinned");
    }

    /// Block of this generation, without pins, to free. The caller then owns the slot.
    pub(crate) fn evict(&self, generation: Generation) -> Eviction {
        let unpinned = block(generation);
        let free = unpinned & !BLOCK;
        let evicted =
            self.word
                .compare_exchange(unpinned, free, Ordering::AcqRel, Ordering::Relaxed);
        match evicted {
            Ok(_) => Eviction::Done,
            Err(word) if word & !PINS == unpinned => Eviction::Pinned,
            Err(_) => Eviction::Stale,
        }
    }
}

/// The word of an unpinned block.
fn block(generation: Generation) -> u64 {
    BLOCK | (u64::from(generation.get()) << GENERATION_SHIFT)
}

fn generation(word: u64) -> Option<Generation> {
    Generation::new((word >> GENERATION_SHIFT) as u32 & Generation::MAX)
}

fn halves(key: BlockKey) -> [u64; 2] {
    let key = key.as_u128();
    [key as u64, (key >> 64) as u64]
}
