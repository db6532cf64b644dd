//! The owner's half of the index: turns what this node stores and removes into a log, keeps it and
//! the node's lease alive, and publishes everything again whenever the store lost something.
//!
//! One action is under way at a time: [`Publisher::poll`] gives it out, [`Publisher::handle`] takes
//! what became of it. Does no I/O and reads no clock; `now` is the time since some fixed start.
//!
//! Everything to publish is one queue of steps, done strictly in order, so that a removal never
//! overtakes its add. A new epoch empties the queue or goes to its end:
//! - planned, because the log has grown long: the rest of the old log, the new log with its
//!   checkpoint, the record that announces it, Rotate at the end of the old log, and what changed
//!   meanwhile;
//! - unplanned, because the store lost something or the queue ran over: first one empty entry that
//!   makes the new log, and only once the store has taken that, the checkpoint. So a store that
//!   cannot be reached costs nothing but the retries.
//!
//! After an entry the next batch is gathered for as long as the node's share of the store needs to
//! pay for the one before: [`crate::pace`] has the arithmetic.

use std::collections::VecDeque;
use std::time::Duration;

use flexkv_block::Location;

use crate::log::{Batch, MAX_ENTRY_BLOCKS};
use crate::pace::Share;
use crate::record::{NodeInfo, NodeRecord};
use crate::residency::LiveSet;

mod checkpoint;
mod epoch;
mod outcome;
mod steps;
mod values;

use checkpoint::Checkpoint;
use steps::{Step, Steps};
pub use values::{PublishAction, PublishOutcome, PublisherConfig, PublisherStats};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    /// The first so many steps.
    Steps(usize),
    /// A renewal of this epoch's log, which the timer asked for.
    Renewal(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no log that carries changes. The next poll opens one.
    Closed,
    /// The first entry of a new log is on its way; changes are left to the checkpoint.
    Opening,
    /// The new log is there and wants its checkpoint.
    Opened,
    /// Changes go to the log.
    Open,
}

/// Publishes what one node holds. See the module's text.
#[derive(Debug)]
pub struct Publisher {
    config: PublisherConfig,
    info: NodeInfo,
    phase: Phase,
    /// The log that entries are made for.
    epoch: u32,
    /// Sequence of the next entry.
    next_sequence: u64,
    /// What the lease says; `None` before it was ever held.
    announced: Option<NodeRecord>,
    steps: Steps,
    /// Made in parts, each when the one before it was taken.
    checkpoint: Option<Checkpoint>,
    batch: Batch,
    /// Time of the first change in `batch`.
    batch_since: Duration,
    /// What may be spent, and until when the entries so far have to be paid for.
    share: Share,
    paid_at: Duration,
    /// How long the latest entry is paid for.
    pause: Duration,
    /// Bytes of the current log's checkpoint, and of its deltas so far.
    checkpoint_bytes: usize,
    delta_bytes: usize,
    flight: Option<Flight>,
    renew_at: Duration,
    /// Logs still to be renewed in this round.
    renewals: VecDeque<u32>,
    retry_at: Option<Duration>,
    failures: u32,
    /// Sequence, and time of the first change, of the latest entries.
    times: VecDeque<(u64, Duration)>,
    stats: PublisherStats,
}

impl Publisher {
    /// How many entries' times are remembered for [`Self::staleness`].
    const TIMES: usize = 4096;

    /// A publisher for the node that `info` describes. Its first poll opens the first log.
    pub fn new(config: PublisherConfig, info: NodeInfo) -> Self {
        Self {
            config,
            info,
            phase: Phase::Closed,
            epoch: 0,
            next_sequence: 1,
            announced: None,
            steps: Steps::default(),
            checkpoint: None,
            batch: Batch::default(),
            batch_since: Duration::ZERO,
            share: Share::alone(u64::MAX),
            paid_at: Duration::ZERO,
            pause: Duration::ZERO,
            checkpoint_bytes: 0,
            delta_bytes: 0,
            flight: None,
            renew_at: Duration::ZERO,
            renewals: VecDeque::new(),
            retry_at: None,
            failures: 0,
            times: VecDeque::new(),
            stats: PublisherStats::default(),
        }
    }

    /// What the node says of itself.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// The record that the lease carries by now; `None` before the node was announced.
    pub fn announced(&self) -> Option<&NodeRecord> {
        self.announced.as_ref()
    }

    /// Whether everything reported so far has been taken by the store and announced.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Open
            && self.steps.is_empty()
            && self.checkpoint.is_none()
            && self.batch.is_empty()
            && self.flight.is_none()
    }

    /// What this node may spend from now on; without limit before the first call.
    pub fn set_share(&mut self, share: Share) {
        self.share = share;
    }

    /// How long changes are gathered at the moment.
    pub fn interval(&self) -> Duration {
        let limit = self.config.batch_interval_max;
        self.pause.min(limit).max(self.config.batch_interval)
    }

    /// Bytes of changes that wait for the store.
    pub fn queued_bytes(&self) -> usize {
        let kept = self
            .checkpoint
            .as_ref()
            .map_or(0, Checkpoint::changes_bytes);
        self.steps.delta_bytes() + kept
    }

    /// Counters.
    pub fn stats(&self) -> PublisherStats {
        self.stats
    }

    /// The node now holds these blocks, each the successor of the one before it and the first one
    /// the successor of `parent`; or it holds them elsewhere than before.
    ///
    /// # Panics
    /// If there are not as many locations as fingerprints.
    pub fn stored(
        &mut self,
        now: Duration,
        mut parent: Option<u64>,
        mut fingerprints: &[u64],
        mut locations: &[Location],
    ) {
        assert_eq!(
            fingerprints.len(),
            locations.len(),
            "one location for each block"
        );
        while self.phase == Phase::Open && !fingerprints.is_empty() {
            let Some(n) = self.make_room(now, fingerprints.len()) else {
                return;
            };
            self.batch.add(parent, &fingerprints[..n], &locations[..n]);
            parent = Some(fingerprints[n - 1]);
            (fingerprints, locations) = (&fingerprints[n..], &locations[n..]);
        }
    }

    /// The node no longer holds these blocks.
    pub fn removed(&mut self, now: Duration, mut fingerprints: &[u64]) {
        while self.phase == Phase::Open && !fingerprints.is_empty() {
            let Some(n) = self.make_room(now, fingerprints.len()) else {
                return;
            };
            self.batch.remove(&fingerprints[..n]);
            fingerprints = &fingerprints[n..];
        }
    }

    /// How many of `wanted` blocks fit the batch, after sealing a full one: at least one. `None` if
    /// the queue ran over.
    fn make_room(&mut self, now: Duration, wanted: usize) -> Option<usize> {
        if self.room_in(&self.batch) == 0 {
            self.seal_batch(now);
        }
        if self.batch.is_empty() {
            self.batch_since = now;
        }
        (self.phase == Phase::Open).then(|| wanted.min(self.room_in(&self.batch)))
    }

    /// How many more blocks fit an entry.
    fn room_in(&self, batch: &Batch) -> usize {
        self.entry_blocks().saturating_sub(batch.blocks())
    }

    /// Most blocks of an entry.
    fn entry_blocks(&self) -> usize {
        self.config.max_entry_blocks.clamp(1, MAX_ENTRY_BLOCKS)
    }

    /// Publishes everything again in a new log, as if the store had lost it. For whoever finds that
    /// the log in the store has a gap.
    pub fn republish(&mut self) {
        self.stats.losses += 1;
        self.close();
    }

    /// The next thing to ask of the store, unless something is under way or nothing is due. `live`
    /// must be what the calls of [`Self::stored`] and [`Self::removed`] so far add up to. Looks at no
    /// more blocks than an entry has: a long checkpoint takes many calls.
    pub fn poll(&mut self, now: Duration, live: &dyn LiveSet) -> Option<PublishAction> {
        if self.flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        if let Some(action) = self.renewal(now) {
            return Some(action);
        }
        match self.phase {
            Phase::Closed => self.open_epoch(),
            Phase::Opening => {}
            Phase::Opened => self.begin_checkpoint(),
            Phase::Open => {
                if self.log_is_long() {
                    self.rotate(now);
                }
                if self.checkpoint.is_some() {
                    if self.steps.is_empty() {
                        self.go_on_with_checkpoint(now, live);
                    }
                } else if self.steps.is_empty() && self.batch_at().is_some_and(|at| now >= at) {
                    self.seal_batch(now);
                }
            }
        }
        self.next_step()
    }

    /// When to poll next, if nothing else happens before; `None` while an action is under way. May
    /// lie in the past: then at once.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.flight.is_some() {
            return None;
        }
        if self.retry_at.is_some() {
            return self.retry_at;
        }
        let busy = self.phase != Phase::Open
            || !self.steps.is_empty()
            || self.checkpoint.is_some()
            || self.log_is_long();
        if busy || !self.renewals.is_empty() {
            return Some(Duration::ZERO);
        }
        let batch = self.batch_at();
        Some(batch.map_or(self.renew_at, |at| at.min(self.renew_at)))
    }

    /// How old the oldest change in entry `sequence` is, for measuring how long changes take to
    /// become visible. Entries before it are forgotten.
    pub fn staleness(&mut self, now: Duration, sequence: u64) -> Option<Duration> {
        while self.times.front().is_some_and(|(at, _)| *at < sequence) {
            self.times.pop_front();
        }
        let (at, since) = self.times.front()?;
        (*at == sequence).then(|| now.saturating_sub(*since))
    }

    /// When the batch becomes an entry, if there is anything in it.
    fn batch_at(&self) -> Option<Duration> {
        let gathered = self.batch_since + self.config.batch_interval;
        let longest = self.batch_since + self.config.batch_interval_max;
        let at = self.paid_at.min(longest).max(gathered);
        (!self.batch.is_empty()).then_some(at)
    }

    /// Whether it is time for a rotation, and none is going on.
    fn log_is_long(&self) -> bool {
        let limit = self.config.rotate_min_bytes.max(2 * self.checkpoint_bytes);
        let announced = self.announced.as_ref().map(|record| record.epoch);
        self.phase == Phase::Open && announced == Some(self.epoch) && self.delta_bytes > limit
    }

    /// Renews what is announced, and the log of a coming epoch that is being written.
    fn renewal(&mut self, now: Duration) -> Option<PublishAction> {
        let announced = self.announced.as_ref()?;
        if now >= self.renew_at && self.renewals.is_empty() {
            self.renewals.push_back(announced.epoch);
            let has_log = matches!(self.phase, Phase::Opened | Phase::Open);
            let creates_log = self
                .checkpoint
                .as_ref()
                .is_some_and(Checkpoint::creates_log)
                || self.steps.creates_log();
            if has_log && self.epoch != announced.epoch && !creates_log {
                self.renewals.push_back(self.epoch);
            }
        }
        let epoch = *self.renewals.front()?;
        self.flight = Some(Flight::Renewal(epoch));
        Some(PublishAction::Renew {
            name: self.info.node().to_string(),
            record: announced.encode(),
            log: self.info.node().log(epoch),
            ttl: self.config.lease_ttl,
        })
    }

    fn next_step(&mut self) -> Option<PublishAction> {
        let node = self.info.node();
        let ttl = self.config.lease_ttl;
        let (taken, action) = match self.steps.front()? {
            Step::Append { epoch, create, .. } => {
                let entries = self.steps.leading_entries(self.config.max_append_bytes);
                let log = node.log(*epoch);
                let create = *create;
                (
                    entries.len(),
                    PublishAction::Append {
                        log,
                        entries,
                        create,
                        ttl,
                    },
                )
            }
            Step::Announce(record) => {
                let action = PublishAction::Renew {
                    name: node.to_string(),
                    record: record.encode(),
                    log: record.log(),
                    ttl,
                };
                (1, action)
            }
            Step::Retire { epoch } => {
                let log = node.log(*epoch);
                (1, PublishAction::Retire { log, ttl })
            }
        };
        self.flight = Some(Flight::Steps(taken));
        Some(action)
    }
}

#[cfg(test)]
mod tests;
