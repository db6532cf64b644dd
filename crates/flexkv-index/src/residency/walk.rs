//! All blocks in parts, while blocks come and go: parents before children, runs as long as they can
//! be. Knows nothing of what the runs are written to.
//!
//! A walk goes through the entries from the latest to the first. From each it climbs to the earliest
//! block of its prompt that was not told yet, and tells the way back. Entries of blocks that came
//! since the walk began may be told or not; whoever writes a checkpoint knows of those anyway.

use super::*;

/// Longest run handed out at once.
const MAX_RUN: usize = 4096;

/// How far a telling of all blocks has come: see [`LiveSet::tell`].
#[derive(Clone, Debug, Default)]
pub struct Walk {
    state: State,
    /// A bit for each entry: told, or about to be.
    seen: Vec<u64>,
    /// What is about to be told, the last one first.
    path: Vec<u32>,
    /// Entries from here on were looked at.
    next: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    /// Looking for the next entry to tell, or telling what is on the path.
    Telling,
    /// Looking for what comes before the path's last.
    Climbing,
    Over,
}

impl Walk {
    /// Whether everything has been told.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Says that everything has been told.
    pub fn end(&mut self) {
        *self = Self {
            state: State::Over,
            ..Self::default()
        };
    }

    fn begin(&mut self, entries: usize) {
        self.seen = vec![0; entries.div_ceil(64)];
        self.next = entries;
        self.state = State::Telling;
    }

    /// Puts an entry on the path, unless it was there already or came after the walk began.
    fn claim(&mut self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        match self.seen.get_mut(at / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.path.push(at as u32);
                true
            }
            _ => false,
        }
    }
}

/// What [`LiveSet::tell`] is about to hand out.
#[derive(Default)]
struct Run {
    parent: Option<BlockKey>,
    /// The last block.
    last: Option<BlockKey>,
    fingerprints: Vec<u64>,
    locations: Vec<Location>,
}

impl Run {
    fn push(&mut self, entry: &Entry, at: Location, each: &mut dyn FnMut(LiveRun<'_>)) {
        let goes_on = self.last.is_some() && entry.parent == self.last;
        if !goes_on || self.fingerprints.len() == MAX_RUN {
            self.hand_out(each);
            self.parent = entry.parent;
        }
        self.fingerprints.push(entry.key.fingerprint());
        self.locations.push(at);
        self.last = Some(entry.key);
    }

    fn hand_out(&mut self, each: &mut dyn FnMut(LiveRun<'_>)) {
        if !self.fingerprints.is_empty() {
            each(LiveRun {
                parent: self.parent.map(BlockKey::fingerprint),
                fingerprints: &self.fingerprints,
                locations: &self.locations,
            });
        }
        self.fingerprints.clear();
        self.locations.clear();
    }
}

impl<P: EvictionPolicy> LiveSet for Residency<P> {
    fn tell(&self, walk: &mut Walk, most: usize, each: &mut dyn FnMut(LiveRun<'_>)) {
        if walk.state == State::New {
            walk.begin(self.entries.len());
        }
        let mut run = Run::default();
        for _ in 0..most {
            match walk.state {
                State::Climbing => {
                    let up = walk.path.last().and_then(|at| self.before(*at));
                    if !up.is_some_and(|up| walk.claim(up.index())) {
                        walk.state = State::Telling;
                    }
                }
                State::Telling => match walk.path.pop() {
                    Some(at) => {
                        let entry = self.entries.get(at as usize);
                        if let Some((entry, best)) = entry.and_then(|e| Some((e, e.best()?))) {
                            run.push(entry, best, each);
                        }
                    }
                    None if walk.next == 0 => walk.end(),
                    None => {
                        walk.next -= 1;
                        let live = self.entries.get(walk.next).is_some_and(Entry::is_live);
                        if live && walk.claim(walk.next) {
                            walk.state = State::Climbing;
                        }
                    }
                },
                State::New | State::Over => break,
            }
        }
        run.hand_out(each);
    }
}

impl<P: EvictionPolicy> Residency<P> {
    /// The block before the one at `at`, if it is here. That is mostly the entry before it, as blocks of a
    /// prompt come together, and looking there first is several times faster than asking the map.
    fn before(&self, at: u32) -> Option<EntryId> {
        let at = at as usize;
        let parent = self.entries.get(at)?.parent?;
        let guess = at.wrapping_sub(1);
        match self.entries.get(guess) {
            Some(entry) if entry.key == parent && entry.is_live() => Some(EntryId::new(guess)),
            _ => self.find(parent),
        }
    }
}
