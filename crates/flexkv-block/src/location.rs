//! Where a block lies at its owner: tier, slot and the slot's generation, packed into one word.
//!
//! Knows nothing of which node the owner is.

/// A slot of a tier, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// How often a slot was filled, modulo 2^28 and never 0; changes whenever the slot's content does.
/// Equality is a hint that saves work; what proves a block is its full key and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u32);

impl Generation {
    /// The generation of a slot's first content.
    pub const FIRST: Self = Self(1);
    /// The largest value; the next one is [`Self::FIRST`].
    pub const MAX: u32 = (1 << 28) - 1;

    /// The generation numbered `value`, if it is in `1..=MAX`.
    pub const fn new(value: u32) -> Option<Self> {
        if value == 0 || value > Self::MAX {
            None
        } else {
            Some(Self(value))
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 == Self::MAX {
            Self::FIRST
        } else {
            Self(self.0 + 1)
        }
    }
}

/// The kind of storage that a block lies in at its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// Host memory: the arena.
    Host = 1,
    /// Local SSD.
    Ssd = 2,
}

impl Tier {
    /// The tier with this number on the wire.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Host),
            2 => Some(Self::Ssd),
            _ => None,
        }
    }
}

/// Where a block lies at its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The kind of storage.
    pub tier: Tier,
    /// The slot within that tier.
    pub slot: SlotId,
    /// The slot's generation when the block was stored.
    pub generation: Generation,
}

impl Location {
    /// `tier` in bits 60..64, generation in bits 32..60, slot in bits 0..32. Never 0.
    pub const fn to_word(self) -> u64 {
        ((self.tier as u64) << 60) | ((self.generation.0 as u64) << 32) | self.slot.0 as u64
    }

    /// The location packed in `word`; `None` for an unknown tier or generation 0.
    pub const fn from_word(word: u64) -> Option<Self> {
        let Some(tier) = Tier::from_u8((word >> 60) as u8) else {
            return None;
        };
        let Some(generation) = Generation::new((word >> 32) as u32 & Generation::MAX) else {
            return None;
        };
        Some(Self {
            tier,
            slot: SlotId(word as u32),
            generation,
        })
    }
}

#[cfg(test)]
mod tests;
