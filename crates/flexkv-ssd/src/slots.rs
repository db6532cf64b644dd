//! Which slot of a directory is in which state. Pure: no file is touched here.
//!
//! ```text
//! free -> filling -> held -> leaving -> free
//!            |         |        |
//!            +---------+--------+-> bad
//! ```
//! A slot stays `leaving` until the journal has told that its block is gone; only then may other
//! bytes be written over it.

use std::collections::VecDeque;

use flexkv_block::{BlockKey, Checksum, Generation};
use flexkv_ports::Eviction;

use crate::format::Held;

#[derive(Clone, Copy, Debug)]
enum State {
    Free,
    Filling,
    Held {
        key: BlockKey,
        parent: Option<BlockKey>,
        checksum: Checksum,
        readers: u32,
        /// What becomes of the slot when the last reader is gone.
        fate: Fate,
    },
    Leaving,
    Bad,
}

/// What a reader found out about the slot it read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// The block is good.
    Keep,
    /// The block is not; the slot may be.
    Drop,
    /// The storage failed there.
    Retire,
}

/// What is to be done after a slot was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) slot: u32,
    pub(crate) generation: Generation,
    /// Whether the slot is used again once the journal has told.
    pub(crate) reuse: bool,
}

/// The slots of one directory.
pub(crate) struct Slots {
    states: Vec<State>,
    /// Of the last content; `None` before the first.
    generations: Vec<Option<Generation>>,
    free: VecDeque<u32>,
    leaving: usize,
    bad: usize,
}

impl Slots {
    /// `count` slots that hold `found`. If two tell of the same block, one of them is left out.
    pub(crate) fn new(count: u32, found: &[Held]) -> Self {
        let mut slots = Self {
            states: vec![State::Free; count as usize],
            generations: vec![None; count as usize],
            free: VecDeque::new(),
            leaving: 0,
            bad: 0,
        };
        for held in found {
            slots.generations[held.slot as usize] = Some(held.generation);
            slots.fill(held);
        }
        slots.free = (0..count)
            .filter(|slot| matches!(slots.states[*slot as usize], State::Free))
            .collect();
        slots
    }

    fn fill(&mut self, held: &Held) {
        self.states[held.slot as usize] = State::Held {
            key: held.key,
            parent: held.parent,
            checksum: held.checksum,
            readers: 0,
            fate: Fate::Keep,
        };
    }

    /// Slots that are not bad.
    pub(crate) fn usable(&self) -> usize {
        self.states.len() - self.bad
    }

    /// Slots that are free or will be without an eviction.
    pub(crate) fn free(&self) -> usize {
        self.free.len() + self.leaving
    }

    /// Whether a slot will be free soon without an eviction.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving > 0
    }

    /// Takes a free slot to fill, with the generation of what it will hold.
    pub(crate) fn take(&mut self) -> Option<(u32, Generation)> {
        let slot = self.free.pop_front()?;
        self.states[slot as usize] = State::Filling;
        let last = &mut self.generations[slot as usize];
        let generation = last.map_or(Generation::FIRST, Generation::next);
        *last = Some(generation);
        Some((slot, generation))
    }

    /// The slot that was being filled holds the block.
    pub(crate) fn hold(&mut self, held: &Held) {
        self.fill(held);
    }

    /// The slot that was being filled, or was leaving, is not used again.
    pub(crate) fn retire(&mut self, slot: u32) {
        let state = &mut self.states[slot as usize];
        match std::mem::replace(state, State::Bad) {
            State::Leaving => self.leaving -= 1,
            State::Bad => return,
            State::Free | State::Filling | State::Held { .. } => {}
        }
        self.bad += 1;
    }

    /// A slot that was leaving is free.
    pub(crate) fn freed(&mut self, slot: u32) {
        let state = &mut self.states[slot as usize];
        if matches!(state, State::Leaving) {
            *state = State::Free;
            self.leaving -= 1;
            self.free.push_back(slot);
        }
    }

    fn held(&mut self, slot: u32, generation: Generation) -> Option<&mut State> {
        let same = *self.generations.get(slot as usize)? == Some(generation);
        let state = &mut self.states[slot as usize];
        let held = matches!(
            state,
            State::Held {
                fate: Fate::Keep,
                ..
            }
        );
        (same && held).then_some(state)
    }

    /// Counts a reader of the block; says what its bytes' checksum must be.
    pub(crate) fn begin_read(
        &mut self,
        slot: u32,
        generation: Generation,
        wanted: BlockKey,
    ) -> Option<Checksum> {
        match self.held(slot, generation)? {
            State::Held {
                key,
                checksum,
                readers,
                ..
            } if *key == wanted => {
                *readers += 1;
                Some(*checksum)
            }
            _ => None,
        }
    }

    /// A reader has found out that the block, or its slot, is no good.
    pub(crate) fn condemn(&mut self, slot: u32, verdict: Fate) {
        if let State::Held { fate, .. } = &mut self.states[slot as usize] {
            *fate = verdict.max(*fate);
        }
    }

    /// A reader is done. A condemned block goes with its last reader.
    pub(crate) fn end_read(&mut self, slot: u32) -> Option<Left> {
        let State::Held { readers, fate, .. } = &mut self.states[slot as usize] else {
            return None;
        };
        *readers -= 1;
        let (readers, fate) = (*readers, *fate);
        (readers == 0 && fate != Fate::Keep).then(|| self.leave(slot, fate == Fate::Drop))
    }

    /// Gives a block up unless it is being read.
    pub(crate) fn evict(&mut self, slot: u32, generation: Generation) -> (Eviction, Option<Left>) {
        match self.held(slot, generation) {
            Some(State::Held { readers: 0, .. }) => (Eviction::Done, Some(self.leave(slot, true))),
            Some(_) => (Eviction::Pinned, None),
            None => (Eviction::Stale, None),
        }
    }

    fn leave(&mut self, slot: u32, reuse: bool) -> Left {
        let generation = self.generations[slot as usize]
            .unwrap_or_else(|| unreachable!("slot {slot} held a block"));
        self.states[slot as usize] = State::Leaving;
        self.leaving += 1;
        if !reuse {
            self.retire(slot);
        }
        Left {
            slot,
            generation,
            reuse,
        }
    }

    /// All blocks, for a new journal or because they are lost.
    pub(crate) fn all(&self) -> Vec<Held> {
        let states = self.states.iter().zip(&self.generations);
        let held = (0u32..).zip(states).filter_map(|(slot, it)| match it {
            (
                State::Held {
                    key,
                    parent,
                    checksum,
                    fate: Fate::Keep,
                    ..
                },
                Some(generation),
            ) => Some(Held {
                slot,
                generation: *generation,
                key: *key,
                parent: *parent,
                checksum: *checksum,
            }),
            _ => None,
        });
        held.collect()
    }
}

#[cfg(test)]
mod tests;
