//! Which block of a tier to give up first: the seam, and one module for each answer. They see entries
//! as numbers and know nothing of locations or tiers, nor of how much a tier holds.

use std::fmt;
use std::str::FromStr;

mod fifo;
mod ghosts;
mod half_age;
mod lfu;
mod list;
mod lru;
mod s3_fifo;
mod slru;

pub use fifo::Fifo;
pub use half_age::HalfAge;
pub use lfu::Lfu;
pub use lru::Lru;
pub use s3_fifo::S3Fifo;
pub use slru::Slru;

/// Names an entry of a [`super::Residency`] for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(u32);

impl EntryId {
    /// The entry at `index`.
    ///
    /// # Panics
    /// If there are 2^32 - 1 entries or more; each has a slot of its own, which 32 bits number.
    pub(super) fn new(index: usize) -> Self {
        match u32::try_from(index) {
            Ok(id) if id != u32::MAX => Self(id),
            _ => panic!("a tier has fewer than 2^32 - 1 slots"),
        }
    }

    /// The number: small, as numbers are used again.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Decides which block of a tier goes first. Calls take constant time, on the average of many.
pub trait EvictionPolicy {
    /// A block came. `parent` is the one before it in its prompt, if that is in this tier too.
    fn on_insert(&mut self, id: EntryId, fingerprint: u64, parent: Option<EntryId>);

    /// A block that is here was used.
    fn on_touch(&mut self, id: EntryId);

    /// A block went.
    fn on_remove(&mut self, id: EntryId);

    /// The first block to give up; or, if that cannot go now, the one to give up after `after`.
    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId>;
}

/// A policy that was chosen at run time.
pub type AnyPolicy = Box<dyn EvictionPolicy + Send>;

impl EvictionPolicy for AnyPolicy {
    fn on_insert(&mut self, id: EntryId, fingerprint: u64, parent: Option<EntryId>) {
        (**self).on_insert(id, fingerprint, parent);
    }

    fn on_touch(&mut self, id: EntryId) {
        (**self).on_touch(id);
    }

    fn on_remove(&mut self, id: EntryId) {
        (**self).on_remove(id);
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        (**self).next_victim(after)
    }
}

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// [`Lru`].
    #[default]
    Lru,
    /// [`Lfu`].
    Lfu,
    /// [`Slru`].
    Slru,
    /// [`Fifo`].
    Fifo,
    /// [`S3Fifo`].
    S3Fifo,
    /// [`HalfAge`].
    HalfAge,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Lru,
        Self::Lfu,
        Self::Slru,
        Self::Fifo,
        Self::S3Fifo,
        Self::HalfAge,
    ];

    /// A policy of this kind, for an empty tier.
    pub fn make(self) -> AnyPolicy {
        match self {
            Self::Lru => Box::new(Lru::default()),
            Self::Lfu => Box::new(Lfu::default()),
            Self::Slru => Box::new(Slru::default()),
            Self::Fifo => Box::new(Fifo::default()),
            Self::S3Fifo => Box::new(S3Fifo::default()),
            Self::HalfAge => Box::new(HalfAge::default()),
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Slru => "slru",
            Self::Fifo => "fifo",
            Self::S3Fifo => "s3-fifo",
            Self::HalfAge => "half-age",
        })
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
            format!("`{text}` is no eviction policy: write one of {names}")
        })
    }
}

#[cfg(test)]
mod tests;
