//! How a publisher begins epochs and fills logs. Numbers run on over all logs of an incarnation:
//! the old log's Rotate entry has the sequence before the new log's first.

use super::checkpoint::{Checkpoint, Replaced};
use super::steps::Kind;
use super::*;
use crate::log::{Entry, EntryPlace};

impl Publisher {
    /// Gives up the current log and everything queued but what is under way; the next checkpoint
    /// carries it all.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.batch = Batch::default();
        self.checkpoint = None;
        self.steps.truncate(match self.flight {
            Some(Flight::Steps(n)) => n,
            Some(Flight::Renewal(_)) | None => 0,
        });
    }

    /// Unplanned: makes a new log, with an empty entry.
    pub(super) fn open_epoch(&mut self) {
        self.steps.clear();
        self.times.clear();
        self.next_epoch();
        self.push_entry(&Entry::Checkpoint(Batch::default()), true);
        self.phase = Phase::Opening;
    }

    /// Begins to fill the log that `open_epoch` made.
    pub(super) fn begin_checkpoint(&mut self) {
        let record = NodeRecord {
            info: self.info.clone(),
            epoch: self.epoch,
            log_start: self.next_sequence - 1,
            rotated: false,
        };
        // Announced before it is complete: followers read along while it is written.
        self.steps.push(Step::Announce(Box::new(record)));
        self.checkpoint = Some(Checkpoint::new(false, None));
        self.phase = Phase::Open;
    }

    /// Planned: begins a new log behind which the old one ends.
    pub(super) fn rotate(&mut self, now: Duration) {
        self.seal_batch(now);
        if self.phase != Phase::Open {
            return;
        }
        let old = Replaced {
            epoch: self.epoch,
            rotate_at: self.next_sequence,
        };
        self.next_sequence += 1;
        self.next_epoch();
        self.stats.rotations += 1;
        self.checkpoint = Some(Checkpoint::new(true, Some(old)));
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.stats.epochs += 1;
        self.checkpoint_bytes = 0;
        self.delta_bytes = 0;
    }

    /// Makes an entry of the batch, if there is anything in it; later, if a checkpoint is being made.
    pub(super) fn seal_batch(&mut self, now: Duration) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        match &mut self.checkpoint {
            None => self.publish(now, batch, self.batch_since),
            Some(checkpoint) => {
                checkpoint.keep(batch, self.batch_since);
                self.check_queue();
            }
        }
    }

    /// Queues changes, of which the first came at `since`.
    pub(super) fn publish(&mut self, now: Duration, batch: Batch, since: Duration) {
        if now < self.paid_at {
            self.stats.over_budget += 1;
        }
        if self.times.len() == Self::TIMES {
            self.times.pop_front();
        }
        self.times.push_back((self.next_sequence, since));
        let bytes = self.push_entry(&Entry::Delta(batch), false);
        self.pause = self.share.after_publishing(bytes);
        // Debt beyond the longest interval is never paid: it would only hold back later changes.
        let since = self
            .paid_at
            .clamp(now, now + self.config.batch_interval_max);
        self.paid_at = since.saturating_add(self.pause);
        self.check_queue();
    }

    /// Gives everything up if too much waits for the store.
    fn check_queue(&mut self) {
        if self.queued_bytes() > self.config.max_queue_bytes {
            self.stats.overflows += 1;
            self.close();
        }
    }

    /// Queues an entry of the current log under the next sequence; returns its bytes.
    pub(super) fn push_entry(&mut self, entry: &Entry, create: bool) -> usize {
        let bytes = self.push_at(self.epoch, self.next_sequence, entry, create);
        self.next_sequence += 1;
        match entry {
            Entry::Delta(_) => self.delta_bytes += bytes,
            _ => self.checkpoint_bytes += bytes,
        }
        bytes
    }

    /// Queues an entry; returns its bytes.
    pub(super) fn push_at(
        &mut self,
        epoch: u32,
        sequence: u64,
        entry: &Entry,
        create: bool,
    ) -> usize {
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
