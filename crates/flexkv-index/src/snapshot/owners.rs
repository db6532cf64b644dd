//! Owner ids and sets of them.
//!
//! Knows nothing of nodes: what an id stands for is the caller's business.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many owners a snapshot can tell apart at one time: twice as many as a large cluster has nodes,
/// as a node whose log is loaded again is a second owner until that is done.
pub const MAX_OWNERS: usize = 2048;

const WORDS: usize = MAX_OWNERS / 64;

/// Names one owner of blocks (a node's incarnation) within one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u16);

impl OwnerId {
    /// Word and bit of the owner in a set; `None` for an id that no snapshot gives out.
    fn bit(self) -> Option<(usize, u64)> {
        let index = usize::from(self.0);
        (index < MAX_OWNERS).then_some((index / 64, 1 << (index % 64)))
    }
}

/// A set of owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerSet {
    words: [u64; WORDS],
}

impl OwnerSet {
    /// The set of nobody.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Adds an owner. An id that no snapshot gives out is left out.
    pub fn insert(&mut self, owner: OwnerId) {
        if let Some((word, bit)) = owner.bit() {
            self.words[word] |= bit;
        }
    }

    /// Takes an owner out.
    pub fn remove(&mut self, owner: OwnerId) {
        if let Some((word, bit)) = owner.bit() {
            self.words[word] &= !bit;
        }
    }

    /// Whether the owner is in the set.
    #[inline]
    pub fn contains(&self, owner: OwnerId) -> bool {
        owner
            .bit()
            .is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Whether nobody is in the set.
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// The set of one owner.
    pub(super) fn only(owner: OwnerId) -> Self {
        let mut set = Self::default();
        set.insert(owner);
        set
    }

    /// The owners of this set that are not in `other`.
    pub(super) fn without(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.words.iter_mut().zip(other.words) {
            *mine &= !theirs;
        }
        self
    }

    /// One of the owners; `seed` says which, so that many callers spread over all of them.
    pub(super) fn pick(&self, seed: u64) -> Option<OwnerId> {
        let count: u32 = self.words.iter().map(|word| word.count_ones()).sum();
        let mut skip = seed.checked_rem(u64::from(count))? as u32;
        for (index, word) in self.words.iter().enumerate() {
            if skip >= word.count_ones() {
                skip -= word.count_ones();
                continue;
            }
            let mut rest = *word;
            for _ in 0..skip {
                rest &= rest - 1;
            }
            return Some(OwnerId((index * 64) as u16 + rest.trailing_zeros() as u16));
        }
        None
    }
}

/// The owners whose blocks count, shared between the writer and the readers.
#[derive(Default)]
pub(super) struct LiveOwners {
    words: [AtomicU64; WORDS],
}

impl LiveOwners {
    /// Makes all that the owner holds visible or invisible at once.
    pub(super) fn set(&self, owner: OwnerId, live: bool) {
        let Some((word, bit)) = owner.bit() else {
            return;
        };
        if live {
            self.words[word].fetch_or(bit, Ordering::Release);
        } else {
            self.words[word].fetch_and(!bit, Ordering::Release);
        }
    }

    pub(super) fn load(&self) -> OwnerSet {
        OwnerSet {
            words: std::array::from_fn(|i| self.words[i].load(Ordering::Acquire)),
        }
    }
}

/// What the writer knows of an id.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Open,
    Removed,
}

/// The writer's book of ids: which are in use, and which wait to be swept.
///
/// A sweep goes over all segments for one group of removed owners; those that are removed
/// meanwhile wait for the next sweep.
pub(super) struct OwnerBook {
    states: [State; MAX_OWNERS],
    /// First in, first out, so that an id comes back as late as possible.
    free: std::collections::VecDeque<OwnerId>,
    waiting: Vec<OwnerId>,
    sweeping: Vec<OwnerId>,
}

impl OwnerBook {
    pub(super) fn new() -> Self {
        Self {
            states: [State::Free; MAX_OWNERS],
            free: (0..MAX_OWNERS).map(|id| OwnerId(id as u16)).collect(),
            waiting: Vec::new(),
            sweeping: Vec::new(),
        }
    }

    pub(super) fn open(&mut self) -> Option<OwnerId> {
        let owner = self.free.pop_front()?;
        self.states[usize::from(owner.0)] = State::Open;
        Some(owner)
    }

    pub(super) fn is_open(&self, owner: OwnerId) -> bool {
        self.states.get(usize::from(owner.0)) == Some(&State::Open)
    }

    /// Closes an open owner; it then waits for a sweep.
    pub(super) fn close(&mut self, owner: OwnerId) {
        if self.is_open(owner) {
            self.states[usize::from(owner.0)] = State::Removed;
            self.waiting.push(owner);
        }
    }

    /// Starts a sweep for all that wait; false if nobody does.
    pub(super) fn start_sweep(&mut self) -> bool {
        self.sweeping.append(&mut self.waiting);
        !self.sweeping.is_empty()
    }

    pub(super) fn is_sweeping(&self) -> bool {
        !self.sweeping.is_empty()
    }

    /// The owners that the running sweep removes.
    pub(super) fn swept(&self) -> OwnerSet {
        let mut set = OwnerSet::default();
        for owner in &self.sweeping {
            set.insert(*owner);
        }
        set
    }

    /// Ends the sweep: its owners hold nothing any more and their ids may be given out again.
    pub(super) fn end_sweep(&mut self) {
        for owner in self.sweeping.drain(..) {
            self.states[usize::from(owner.0)] = State::Free;
            self.free.push_back(owner);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sweeping.is_empty() && self.waiting.is_empty()
    }
}
