//! How a checkpoint is made: an entry at a time, while blocks come and go. Whoever holds the owner's
//! lock does so for one part at a time.
//!
//! What changes meanwhile is kept back and goes behind the checkpoint, so it does not matter whether
//! the checkpoint has it or not: with those changes it comes to what is held.

use super::*;
use crate::log::{Entry, Rotate};
use crate::residency::Walk;

/// Steps of [`LiveSet::tell`] for each block of a full entry.
const STEPS: usize = 2;
/// What a changed block takes in an entry, roughly.
const CHANGE_BYTES: usize = 24;

/// A checkpoint that is being made.
#[derive(Debug)]
pub(super) struct Checkpoint {
    walk: Walk,
    /// What no entry has yet.
    batch: Batch,
    /// The next entry makes the log.
    create: bool,
    /// The log that ends when this is complete.
    replaces: Option<Replaced>,
    /// Changes since the walk began, each with the time of its first one.
    changes: VecDeque<(Batch, Duration)>,
    changed_blocks: usize,
}

/// A log that another one goes on from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replaced {
    pub(super) epoch: u32,
    /// The sequence of its last entry.
    pub(super) rotate_at: u64,
}

impl Checkpoint {
    pub(super) fn new(create: bool, replaces: Option<Replaced>) -> Self {
        Self {
            walk: Walk::default(),
            batch: Batch::default(),
            create,
            replaces,
            changes: VecDeque::new(),
            changed_blocks: 0,
        }
    }

    /// Keeps changes back.
    pub(super) fn keep(&mut self, changes: Batch, since: Duration) {
        self.changed_blocks += changes.blocks();
        self.changes.push_back((changes, since));
    }

    /// Whether its log is yet to be made.
    pub(super) fn creates_log(&self) -> bool {
        self.create
    }

    /// Bytes of the changes kept back.
    pub(super) fn changes_bytes(&self) -> usize {
        self.changed_blocks * CHANGE_BYTES
    }
}

impl Publisher {
    /// Makes one more part of the checkpoint that is being made, if there is one.
    pub(super) fn go_on_with_checkpoint(&mut self, now: Duration, live: &dyn LiveSet) {
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return;
        };
        let Checkpoint {
            walk,
            batch,
            create,
            ..
        } = &mut checkpoint;
        live.tell(walk, STEPS * self.entry_blocks(), &mut |run| {
            let (mut parent, mut fingerprints, mut locations) =
                (run.parent, run.fingerprints, run.locations);
            while !fingerprints.is_empty() {
                if self.room_in(batch) == 0 {
                    let full = Entry::Checkpoint(std::mem::take(batch));
                    self.push_entry(&full, std::mem::take(create));
                }
                let n = fingerprints.len().min(self.room_in(batch));
                batch.add(parent, &fingerprints[..n], &locations[..n]);
                parent = Some(fingerprints[n - 1]);
                (fingerprints, locations) = (&fingerprints[n..], &locations[n..]);
            }
        });
        if checkpoint.walk.is_over() {
            self.complete(now, checkpoint);
        } else {
            self.checkpoint = Some(checkpoint);
        }
    }

    /// Everything has been told: the rest, the end, and what was kept back.
    fn complete(&mut self, now: Duration, checkpoint: Checkpoint) {
        let Checkpoint { batch, create, .. } = checkpoint;
        if create || !batch.is_empty() {
            self.push_entry(&Entry::Checkpoint(batch), create);
        }
        self.push_entry(&Entry::CheckpointEnd, false);
        if let Some(old) = checkpoint.replaces {
            self.end_log(old);
        }
        for (changes, since) in checkpoint.changes {
            // Unless the queue ran over.
            if self.phase == Phase::Open {
                self.publish(now, changes, since);
            }
        }
    }

    /// Ends the old log with Rotate, behind a complete new one.
    fn end_log(&mut self, old: Replaced) {
        let record = NodeRecord {
            info: self.info.clone(),
            epoch: self.epoch,
            log_start: old.rotate_at + 1,
            rotated: true,
        };
        let rotate = Entry::Rotate(Rotate {
            next_epoch: self.epoch,
            resume_after: self.next_sequence - 1,
        });
        self.steps.push(Step::Announce(Box::new(record)));
        self.push_at(old.epoch, old.rotate_at, &rotate, false);
        self.steps.push(Step::Retire { epoch: old.epoch });
    }
}

#[cfg(test)]
mod tests;
