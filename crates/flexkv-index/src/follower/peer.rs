//! One node as its follower sees it, and what one entry of its log does. Knows nothing of who is a
//! member.

use super::*;
use crate::log::{Batch, Entry, EntryPlace, Op, Rotate};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Reading the checkpoint, into this owner; our own into none.
    Loading(Option<OwnerId>),
    /// The checkpoint is complete, changes are applied to the owner that is served.
    Following,
    /// The log is faulty; loaded again at this time.
    Waiting(Duration),
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) is_own: bool,
    /// The latest record.
    pub(super) record: Arc<NodeRecord>,
    /// The owner that is live in the snapshot.
    pub(super) serving: Option<OwnerId>,
    pub(super) state: State,
    /// The log being read: its epoch, name and first sequence. May be ahead of the record.
    pub(super) epoch: u32,
    pub(super) log: String,
    pub(super) log_start: u64,
    /// The last sequence applied.
    pub(super) applied: u64,
    /// Loads of this log that failed, and the sequence that the last one could not get past.
    pub(super) failures: u32,
    pub(super) failed_at: u64,
    /// Until when the end of this log is waited for, once the next one is announced.
    pub(super) grace: Option<Duration>,
    /// For how long the node has been missing.
    pub(super) absent: Duration,
    /// In which list of members it was first seen.
    pub(super) joined_at: Duration,
    /// When its log last had changes.
    pub(super) changed_at: Option<Duration>,
}

impl Peer {
    pub(super) fn new(record: NodeRecord, is_own: bool, now: Duration) -> Self {
        Self {
            is_own,
            serving: None,
            state: State::Waiting(now),
            epoch: record.epoch,
            log: record.log(),
            log_start: record.log_start,
            applied: record.log_start - 1,
            record: Arc::new(record),
            failures: 0,
            failed_at: 0,
            grace: None,
            absent: Duration::ZERO,
            joined_at: now,
            changed_at: None,
        }
    }

    pub(super) fn node(&self) -> &NodeId {
        self.record.info.node()
    }

    pub(super) fn is_reading(&self) -> bool {
        !matches!(self.state, State::Waiting(_))
    }

    /// The old log still has news, so its end may yet come.
    pub(super) fn progress(&mut self, now: Duration, config: &FollowerConfig) {
        if let Some(until) = &mut self.grace {
            *until = now + config.rotate_grace;
        }
    }

    /// The owner that entries are applied to.
    fn target(&self) -> Option<OwnerId> {
        match self.state {
            State::Loading(owner) => owner,
            State::Following => self.serving,
            State::Waiting(_) => None,
        }
    }

    /// Turns to another log, of which everything up to `applied` is known already.
    fn turn_to(&mut self, epoch: u32, log_start: u64, applied: u64) {
        self.epoch = epoch;
        self.log = self.node().log(epoch);
        self.log_start = log_start;
        self.applied = applied;
        self.grace = None;
        self.failures = 0;
    }

    /// Gives up a load that is under way.
    pub(super) fn abandon(&mut self, writer: &mut SnapshotWriter) {
        if let State::Loading(Some(owner)) = self.state {
            writer.remove_owner(owner);
        }
    }
}

impl Follower {
    /// Applies one entry of the log that `peer` is at.
    pub(super) fn apply(
        &mut self,
        now: Duration,
        peer: &mut Peer,
        sequence: u64,
        bytes: &[u8],
        writer: &mut SnapshotWriter,
    ) -> Result<(), Trouble> {
        let expected = peer.applied + 1;
        if sequence != expected {
            return Err(Trouble::Gap {
                expected,
                found: sequence,
            });
        }
        let incarnation = peer.node().incarnation;
        let place = EntryPlace {
            incarnation,
            sequence,
        };
        let entry =
            Entry::decode(bytes, place).map_err(|error| Trouble::Entry { sequence, error })?;
        let following = matches!(peer.state, State::Following);
        match entry {
            Entry::Checkpoint(batch) if !following => write(peer.target(), &batch, writer),
            Entry::CheckpointEnd if !following => self.loaded(peer, writer),
            Entry::Delta(batch) if following => {
                write(peer.target(), &batch, writer);
                if !batch.is_empty() {
                    peer.changed_at = Some(now);
                }
                if peer.is_own {
                    self.event(FollowerEvent::OwnVisible { sequence });
                }
            }
            Entry::Rotate(rotate) if following => return self.rotated(peer, sequence, rotate),
            _ => return Err(Trouble::Order { sequence }),
        }
        peer.applied = sequence;
        if sequence >= peer.failed_at {
            peer.failures = 0;
        }
        Ok(())
    }

    /// The checkpoint is complete: shows the new owner and forgets the former one.
    fn loaded(&mut self, peer: &mut Peer, writer: &mut SnapshotWriter) {
        if let State::Loading(Some(owner)) = peer.state {
            writer.set_live(owner, true);
            if let Some(former) = peer.serving.replace(owner) {
                writer.remove_owner(former);
            }
            self.changes += 1;
        }
        peer.state = State::Following;
        self.event(FollowerEvent::Loaded {
            node: peer.node().clone(),
            epoch: peer.epoch,
        });
    }

    fn rotated(&mut self, peer: &mut Peer, sequence: u64, rotate: Rotate) -> Result<(), Trouble> {
        if rotate.next_epoch <= peer.epoch || rotate.resume_after <= sequence {
            return Err(Trouble::Order { sequence });
        }
        peer.turn_to(rotate.next_epoch, sequence + 1, rotate.resume_after);
        self.event(FollowerEvent::Rotated {
            node: peer.node().clone(),
            epoch: rotate.next_epoch,
        });
        Ok(())
    }

    /// Loads the log of an epoch from its start, into a new owner.
    pub(super) fn load(
        &mut self,
        now: Duration,
        peer: &mut Peer,
        (epoch, log_start): (u32, u64),
        writer: &mut SnapshotWriter,
    ) {
        peer.abandon(writer);
        let node = peer.node().clone();
        if epoch == peer.epoch {
            peer.applied = log_start - 1;
            peer.grace = None;
        } else {
            peer.turn_to(epoch, log_start, log_start - 1);
        }
        let owner = if peer.is_own {
            None
        } else {
            writer.add_owner()
        };
        if owner.is_none() && !peer.is_own {
            peer.state = State::Waiting(now + self.config.reload_min);
            self.event(FollowerEvent::NoOwnerFree { node });
            return;
        }
        peer.state = State::Loading(owner);
        if peer.serving.is_some() {
            self.event(FollowerEvent::Resync { node, epoch });
        }
    }

    /// What to do about a faulty log: load it again, at once if that was not tried yet. A fault in
    /// the checkpoint itself would only be read again, so that waits.
    pub(super) fn start_over(
        &mut self,
        now: Duration,
        peer: &mut Peer,
        writer: &mut SnapshotWriter,
    ) {
        let first = peer.failures == 0 && Self::is_following(peer);
        peer.failures = peer.failures.saturating_add(1);
        peer.failed_at = peer.applied + 1;
        if first {
            let log = (peer.epoch, peer.log_start);
            self.load(now, peer, log, writer);
            return;
        }
        peer.abandon(writer);
        let doubled = self.config.reload_min * (1 << (peer.failures - 1).min(16));
        let pause = doubled.min(self.config.reload_max);
        peer.state = State::Waiting(now + pause);
    }
}

fn write(owner: Option<OwnerId>, batch: &Batch, writer: &mut SnapshotWriter) {
    let Some(owner) = owner else { return };
    for op in batch.ops() {
        match op {
            Op::Add {
                parent,
                fingerprints,
                locations,
            } => writer.add_run(owner, parent, fingerprints, locations),
            Op::Remove { fingerprints } => writer.remove(owner, fingerprints),
        }
    }
}
