//! Which block to give up first: the seam, and least recently used. Sees entries as numbers and
//! knows nothing of keys, locations or tiers.

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
            Ok(id) if id != Lru::NONE => Self(id),
            _ => panic!("a tier has fewer than 2^32 - 1 slots"),
        }
    }

    /// The number: small, as numbers are used again.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Decides which block of a tier goes first. All calls take constant time.
pub trait EvictionPolicy {
    /// A block came. `parent` is the one before it in its prompt, if that is in this tier too.
    fn on_insert(&mut self, id: EntryId, parent: Option<EntryId>);

    /// A block that is here was used.
    fn on_touch(&mut self, id: EntryId);

    /// A block went.
    fn on_remove(&mut self, id: EntryId);

    /// The first block to give up, or the one to give up after `after`.
    fn next_victim(&self, after: Option<EntryId>) -> Option<EntryId>;
}

/// Gives up the least recently used block first. A new block counts as used just before its parent
/// was, so that the tail of a prompt goes before its head.
#[derive(Clone, Debug)]
pub struct Lru {
    links: Vec<Links>,
    /// Used most recently.
    newest: u32,
    /// Used least recently.
    oldest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    newer: u32,
    older: u32,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            newest: Self::NONE,
            oldest: Self::NONE,
        }
    }
}

impl Lru {
    const NONE: u32 = u32::MAX;

    /// Puts `id` directly behind `newer`, or in front of all if that is `NONE`.
    fn link(&mut self, id: u32, newer: u32) {
        let older = if newer == Self::NONE {
            std::mem::replace(&mut self.newest, id)
        } else {
            std::mem::replace(&mut self.links[newer as usize].older, id)
        };
        if older == Self::NONE {
            self.oldest = id;
        } else {
            self.links[older as usize].newer = id;
        }
        self.links[id as usize] = Links { newer, older };
    }

    fn unlink(&mut self, id: u32) {
        let Links { newer, older } = self.links[id as usize];
        if newer == Self::NONE {
            self.newest = older;
        } else {
            self.links[newer as usize].older = older;
        }
        if older == Self::NONE {
            self.oldest = newer;
        } else {
            self.links[older as usize].newer = newer;
        }
    }
}

impl EvictionPolicy for Lru {
    fn on_insert(&mut self, id: EntryId, parent: Option<EntryId>) {
        if self.links.len() <= id.index() {
            let none = Links {
                newer: Self::NONE,
                older: Self::NONE,
            };
            self.links.resize(id.index() + 1, none);
        }
        self.link(id.0, parent.map_or(Self::NONE, |parent| parent.0));
    }

    fn on_touch(&mut self, id: EntryId) {
        if self.newest != id.0 {
            self.unlink(id.0);
            self.link(id.0, Self::NONE);
        }
    }

    fn on_remove(&mut self, id: EntryId) {
        self.unlink(id.0);
    }

    fn next_victim(&self, after: Option<EntryId>) -> Option<EntryId> {
        let next = after.map_or(self.oldest, |id| self.links[id.index()].newer);
        (next != Self::NONE).then_some(EntryId(next))
    }
}
