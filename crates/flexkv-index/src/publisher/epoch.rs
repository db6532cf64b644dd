//! How a publisher begins epochs and fills logs. Numbers run on over all logs of an incarnation:
//! the old log's Rotate entry has the sequence before the new log's first.

use super::steps::Kind;
use super::*;
use crate::log::{Entry, EntryPlace, Rotate};
use crate::residency::LiveRun;

impl Publisher {
    /// Gives up the current log and everything queued; the next checkpoint carries it all.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.batch = Batch::default();
        if self.flight.is_none() {
            self.steps.clear();
        }
    }

    /// Unplanned: makes a new log, with an empty entry.
    pub(super) fn open_epoch(&mut self) {
        self.steps.clear();
        self.times.clear();
        self.next_epoch();
        self.push_entry(&Entry::Checkpoint(Batch::default()), true);
        self.phase = Phase::Opening;
    }

    /// Fills the log that `open_epoch` made.
    pub(super) fn write_checkpoint(&mut self, live: &dyn LiveSet) {
        let record = NodeRecord {
            info: self.info.clone(),
            epoch: self.epoch,
            log_start: self.next_sequence - 1,
            rotated: false,
        };
        // Announced before it is complete: followers read along while it is written.
        self.steps.push(Step::Announce(Box::new(record)));
        self.push_checkpoint(live, false);
        self.phase = Phase::Open;
    }

    /// Planned: ends the old log with Rotate, behind a complete new one.
    pub(super) fn rotate(&mut self, now: Duration, live: &dyn LiveSet) {
        self.seal_batch(now);
        if self.phase != Phase::Open {
            return;
        }
        let old = self.epoch;
        let rotate_at = self.next_sequence;
        self.next_sequence += 1;
        self.next_epoch();
        self.stats.rotations += 1;
        let log_start = self.next_sequence;
        self.push_checkpoint(live, true);
        let record = NodeRecord {
            info: self.info.clone(),
            epoch: self.epoch,
            log_start,
            rotated: true,
        };
        let rotate = Entry::Rotate(Rotate {
            next_epoch: self.epoch,
            resume_after: self.next_sequence - 1,
        });
        self.steps.push(Step::Announce(Box::new(record)));
        self.push_at(old, rotate_at, &rotate, false);
        self.steps.push(Step::Retire { epoch: old });
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.stats.epochs += 1;
        self.checkpoint_bytes = 0;
        self.delta_bytes = 0;
    }

    /// Queues all live blocks and the checkpoint's end. `create`: its first entry makes the log.
    fn push_checkpoint(&mut self, live: &dyn LiveSet, mut create: bool) {
        let mut batch = Batch::default();
        live.for_each_run(&mut |run| {
            let LiveRun {
                mut parent,
                mut fingerprints,
                mut locations,
            } = run;
            while !fingerprints.is_empty() {
                if self.room_in(&batch) == 0 {
                    let full = Entry::Checkpoint(std::mem::take(&mut batch));
                    self.push_entry(&full, std::mem::take(&mut create));
                }
                let n = fingerprints.len().min(self.room_in(&batch));
                batch.add(parent, &fingerprints[..n], &locations[..n]);
                parent = Some(fingerprints[n - 1]);
                (fingerprints, locations) = (&fingerprints[n..], &locations[n..]);
            }
        });
        if create || !batch.is_empty() {
            self.push_entry(&Entry::Checkpoint(batch), create);
        }
        self.push_entry(&Entry::CheckpointEnd, false);
    }

    /// Makes an entry of the batch, if there is anything in it.
    pub(super) fn seal_batch(&mut self, now: Duration) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if now < self.paid_at {
            self.stats.over_budget += 1;
        }
        let bytes = self.push_delta(batch, self.batch_since);
        self.pause = self.share.after_publishing(bytes);
        // Debt beyond the longest interval is never paid: it would only hold back later changes.
        let since = self
            .paid_at
            .clamp(now, now + self.config.batch_interval_max);
        self.paid_at = since.saturating_add(self.pause);
    }

    /// Queues changes, of which the first came at `since`; returns their bytes.
    pub(super) fn push_delta(&mut self, batch: Batch, since: Duration) -> usize {
        if self.times.len() == Self::TIMES {
            self.times.pop_front();
        }
        self.times.push_back((self.next_sequence, since));
        let bytes = self.push_entry(&Entry::Delta(batch), false);
        if self.steps.delta_bytes() > self.config.max_queue_bytes {
            self.stats.overflows += 1;
            self.close();
        }
        bytes
    }

    /// Queues an entry of the current log under the next sequence; returns its bytes.
    fn push_entry(&mut self, entry: &Entry, create: bool) -> usize {
        let bytes = self.push_at(self.epoch, self.next_sequence, entry, create);
        self.next_sequence += 1;
        match entry {
            Entry::Delta(_) => self.delta_bytes += bytes,
            _ => self.checkpoint_bytes += bytes,
        }
        bytes
    }

    /// Queues an entry; returns its bytes.
    fn push_at(&mut self, epoch: u32, sequence: u64, entry: &Entry, create: bool) -> usize {
        let bytes = entry.encode(EntryPlace {
            incarnation: self.info.node().incarnation,
            sequence,
        });
        let len = bytes.len();
        let kind = match entry {
            Entry::Checkpoint(_) | Entry::CheckpointEnd => Kind::Checkpoint,
            Entry::Delta(_) => Kind::Delta,
            Entry::Rotate(_) => Kind::Rotate,
        };
        self.steps.push(Step::Append {
            epoch,
            sequence,
            bytes,
            create,
            kind,
        });
        len
    }
}
