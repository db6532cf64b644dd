//! What is to be done, in order. Knows nothing of time or of what the entries say.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::record::NodeRecord;

/// What an entry is, as far as the queue must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Checkpoint,
    /// Counts against the queue's limit.
    Delta,
    /// The end of an old log.
    Rotate,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Append one entry.
    Append {
        epoch: u32,
        sequence: u64,
        bytes: Bytes,
        /// The first entry of its log.
        create: bool,
        kind: Kind,
    },
    /// Hold the lease with this record.
    Announce(Box<NodeRecord>),
    /// Let the log of an epoch expire.
    Retire { epoch: u32 },
}

#[derive(Debug, Default)]
pub(super) struct Steps {
    queue: VecDeque<Step>,
    delta_bytes: usize,
    /// An append of so many entries has an unknown fate, and must be repeated as it was.
    repeat: Option<usize>,
}

impl Steps {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn front(&self) -> Option<&Step> {
        self.queue.front()
    }

    /// Bytes of the deltas that wait.
    pub(super) fn delta_bytes(&self) -> usize {
        self.delta_bytes
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Drops all but the leading `n` steps.
    pub(super) fn truncate(&mut self, n: usize) {
        let dropped = self.queue.drain(n.min(self.queue.len())..);
        self.delta_bytes -= dropped
            .map(|step| Self::delta_bytes_of(&step))
            .sum::<usize>();
        self.repeat = None;
    }

    /// The leading `n` steps were tried and must be tried again as they were.
    pub(super) fn repeat(&mut self, n: usize) {
        self.repeat = Some(n);
    }

    pub(super) fn push(&mut self, step: Step) {
        self.delta_bytes += Self::delta_bytes_of(&step);
        self.queue.push_back(step);
    }

    pub(super) fn pop(&mut self) -> Option<Step> {
        let step = self.queue.pop_front()?;
        self.repeat = None;
        self.delta_bytes -= Self::delta_bytes_of(&step);
        Some(step)
    }

    fn delta_bytes_of(step: &Step) -> usize {
        match step {
            Step::Append {
                bytes,
                kind: Kind::Delta,
                ..
            } => bytes.len(),
            _ => 0,
        }
    }

    /// Whether a log that later steps write to is yet to be made.
    pub(super) fn creates_log(&self) -> bool {
        let creates = |step: &Step| matches!(step, Step::Append { create: true, .. });
        self.queue.iter().any(creates)
    }

    /// The entries of the leading appends that go to one log in one action: at least one, and no
    /// more than `max_bytes` otherwise.
    pub(super) fn leading_entries(&self, max_bytes: usize) -> Vec<(u64, Bytes)> {
        let mut entries = Vec::new();
        let mut total = 0;
        let mut log = None;
        for step in &self.queue {
            let Step::Append {
                epoch,
                sequence,
                bytes,
                ..
            } = step
            else {
                break;
            };
            total += bytes.len();
            let other = log.is_some_and(|log| log != *epoch);
            let enough = self
                .repeat
                .map_or(total > max_bytes, |n| entries.len() >= n);
            if other || (enough && !entries.is_empty()) {
                break;
            }
            log = Some(*epoch);
            entries.push((*sequence, bytes.clone()));
        }
        entries
    }
}
