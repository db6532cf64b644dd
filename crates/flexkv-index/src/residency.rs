//! What this node holds itself: for each block the slots it lies in, the block before it, and how
//! recently it was used.
//!
//! A block may lie in several tiers at once; peers are told of the fastest. Knows nothing of how
//! much a tier holds: the tier says when it is full, and [`Residency::next_victim`] says what to give
//! up. Does no I/O.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use flexkv_block::{BlockKey, Generation, Location, SlotId, Tier};

mod policy;
mod walk;

pub use policy::{
    AnyPolicy, EntryId, EvictionPolicy, Fifo, HalfAge, Lfu, Lru, PolicyKind, S3Fifo, Slru,
};
pub use walk::Walk;

/// Tiers in the order in which they are preferred.
const TIERS: [Tier; 2] = [Tier::Host, Tier::Ssd];

/// Blocks each of which is the successor of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveRun<'a> {
    /// The block before the first one; `None` at the start of a prompt.
    pub parent: Option<u64>,
    /// The blocks' fingerprints.
    pub fingerprints: &'a [u64],
    /// Where each of them lies.
    pub locations: &'a [Location],
}

/// Live blocks, told in parts; what a checkpoint is made of.
pub trait LiveSet {
    /// Goes on with `walk`, which is new at first: calls `each` with runs that were not told yet, until
    /// the walk is over or about `most` steps were taken, of which a block takes two.
    ///
    /// Blocks may come and go between calls. Those that were live all the time are told once each, with
    /// where they lie now; a block comes after its parent if both were. Others may be told or not.
    fn tell(&self, walk: &mut Walk, most: usize, each: &mut dyn FnMut(LiveRun<'_>));
}

/// What [`Residency::remove`] left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The block was not there, or lies elsewhere in this tier by now. Nothing was changed.
    Absent,
    /// Nothing: the block is gone.
    Gone,
    /// The block still lies in another tier, here.
    Left(Location),
}

#[derive(Clone, Debug)]
struct Entry {
    key: BlockKey,
    parent: Option<BlockKey>,
    slots: [Option<(SlotId, Generation)>; TIERS.len()],
}

impl Entry {
    fn location(&self, tier: Tier) -> Option<Location> {
        let (slot, generation) = self.slots[index(tier)]?;
        Some(Location {
            tier,
            slot,
            generation,
        })
    }

    fn is_live(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    fn best(&self) -> Option<Location> {
        TIERS.iter().find_map(|tier| self.location(*tier))
    }
}

const fn index(tier: Tier) -> usize {
    match tier {
        Tier::Host => 0,
        Tier::Ssd => 1,
    }
}

/// Hashes a key by its low 64 bits, which are a keyed hash already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A key as the map sees it: equality on all 128 bits, hashed by the fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapKey(BlockKey);

impl Hash for MapKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.fingerprint());
    }
}

/// The blocks of this node. Every operation on a block takes constant time.
#[derive(Debug)]
pub struct Residency<P: EvictionPolicy = Lru> {
    map: HashMap<MapKey, EntryId, BuildHasherDefault<KeyHasher>>,
    entries: Vec<Entry>,
    /// Places in `entries` that hold nothing.
    free: Vec<EntryId>,
    policies: [P; TIERS.len()],
    lens: [usize; TIERS.len()],
}

impl<P: EvictionPolicy + Default> Default for Residency<P> {
    fn default() -> Self {
        Self::new(P::default(), P::default())
    }
}

impl<P: EvictionPolicy> Residency<P> {
    /// Holds nothing; each tier has its own eviction policy.
    pub fn new(host: P, ssd: P) -> Self {
        Self {
            map: HashMap::default(),
            entries: Vec::new(),
            free: Vec::new(),
            policies: [host, ssd],
            lens: [0; TIERS.len()],
        }
    }

    /// Number of blocks, each counted once.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Number of blocks in `tier`.
    pub fn len_in(&self, tier: Tier) -> usize {
        self.lens[index(tier)]
    }

    /// Whether no block is here.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Notes that the block `key`, which comes after `parent`, lies at `location`. Returns where it
    /// lay in that tier before.
    pub fn insert(
        &mut self,
        key: BlockKey,
        parent: Option<BlockKey>,
        location: Location,
    ) -> Option<Location> {
        let id = match self.map.get(&MapKey(key)) {
            Some(id) => *id,
            None => self.add(key, parent),
        };
        let tier = index(location.tier);
        let entry = &mut self.entries[id.index()];
        let before = entry.location(location.tier);
        entry.slots[tier] = Some((location.slot, location.generation));
        if before.is_none() {
            let parent = entry.parent.and_then(|key| self.find(key));
            let parent = parent.filter(|id| self.entries[id.index()].slots[tier].is_some());
            self.policies[tier].on_insert(id, key.fingerprint(), parent);
            self.lens[tier] += 1;
        }
        before
    }

    fn add(&mut self, key: BlockKey, parent: Option<BlockKey>) -> EntryId {
        let entry = Entry {
            key,
            parent,
            slots: [None; TIERS.len()],
        };
        let id = if let Some(id) = self.free.pop() {
            self.entries[id.index()] = entry;
            id
        } else {
            self.entries.push(entry);
            EntryId::new(self.entries.len() - 1)
        };
        self.map.insert(MapKey(key), id);
        id
    }

    fn find(&self, key: BlockKey) -> Option<EntryId> {
        self.map.get(&MapKey(key)).copied()
    }

    fn entry(&self, key: BlockKey) -> Option<&Entry> {
        self.find(key).map(|id| &self.entries[id.index()])
    }

    /// Where the block lies, in the fastest of its tiers.
    pub fn get(&self, key: BlockKey) -> Option<Location> {
        self.entry(key)?.best()
    }

    /// Where the block lies in `tier`.
    pub fn get_in(&self, key: BlockKey, tier: Tier) -> Option<Location> {
        self.entry(key)?.location(tier)
    }

    /// The block before `key`, if `key` is here and not the first of its prompt.
    pub fn parent(&self, key: BlockKey) -> Option<BlockKey> {
        self.entry(key)?.parent
    }

    /// How many leading blocks of `keys` are here.
    pub fn leading(&self, keys: &[BlockKey]) -> usize {
        keys.iter()
            .take_while(|key| self.find(**key).is_some())
            .count()
    }

    /// Notes that a prompt was used; `keys` are its blocks from the first one on. Tails become the
    /// next to go before their heads, without which they are worthless. Absent blocks are skipped.
    pub fn touch(&mut self, keys: &[BlockKey]) {
        for key in keys.iter().rev() {
            let Some(id) = self.find(*key) else { continue };
            for (tier, policy) in self.policies.iter_mut().enumerate() {
                if self.entries[id.index()].slots[tier].is_some() {
                    policy.on_touch(id);
                }
            }
        }
    }

    /// The block of `tier` to give up first; or, if that cannot go now, the one to give up after the
    /// block `after`.
    pub fn next_victim(
        &mut self,
        tier: Tier,
        after: Option<BlockKey>,
    ) -> Option<(BlockKey, Location)> {
        let at = index(tier);
        let here = |entry: &Entry| entry.slots[at].is_some();
        let after = match after {
            None => None,
            Some(key) => Some(
                self.find(key)
                    .filter(|id| here(&self.entries[id.index()]))?,
            ),
        };
        let id = self.policies[at].next_victim(after)?;
        let entry = &self.entries[id.index()];
        Some((entry.key, entry.location(tier)?))
    }

    /// Notes that the block no longer lies at `location`.
    pub fn remove(&mut self, key: BlockKey, location: Location) -> Removed {
        let Some(id) = self.find(key) else {
            return Removed::Absent;
        };
        let entry = &mut self.entries[id.index()];
        if entry.location(location.tier) != Some(location) {
            return Removed::Absent;
        }
        let tier = index(location.tier);
        entry.slots[tier] = None;
        let left = entry.best();
        self.policies[tier].on_remove(id);
        self.lens[tier] -= 1;
        if let Some(location) = left {
            return Removed::Left(location);
        }
        self.map.remove(&MapKey(key));
        self.free.push(id);
        Removed::Gone
    }

    /// All blocks and where they lie, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockKey, Location)> {
        self.map.iter().filter_map(|(key, id)| {
            let best = self.entries[id.index()].best()?;
            Some((key.0, best))
        })
    }
}

#[cfg(test)]
mod tests;
