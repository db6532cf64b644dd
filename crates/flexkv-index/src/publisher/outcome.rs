//! What a publisher does about the outcome of an action. Failures pause everything for a while,
//! longer each time; what failed is then tried again as it was.

use super::steps::Kind;
use super::*;

impl Publisher {
    /// Takes what became of the action under way. Without one it does nothing.
    pub fn handle(&mut self, now: Duration, outcome: PublishOutcome) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        if let (Flight::Steps(n), PublishOutcome::Unavailable) = (flight, outcome) {
            self.steps.repeat(n);
        }
        match outcome {
            PublishOutcome::Unavailable => self.pause(now, false),
            PublishOutcome::Denied | PublishOutcome::Full => self.pause(now, true),
            PublishOutcome::Done | PublishOutcome::Renewed { .. } | PublishOutcome::LogLost => {
                self.retry_at = None;
                self.failures = 0;
                self.done(now, flight, outcome);
            }
        }
        if self.phase == Phase::Closed {
            self.steps.clear();
        }
    }

    /// The store has answered.
    fn done(&mut self, now: Duration, flight: Flight, outcome: PublishOutcome) {
        let (lease_kept, log_kept) = match outcome {
            PublishOutcome::Renewed {
                lease_kept,
                log_kept,
            } => (lease_kept, log_kept),
            _ => (true, true),
        };
        match flight {
            Flight::Renewal(epoch) => {
                self.renewals.pop_front();
                self.renewed(epoch, lease_kept, log_kept);
                if self.renewals.is_empty() {
                    self.renew_at = now + self.config.lease_ttl / 3;
                }
            }
            Flight::Steps(n) => {
                let lost = outcome == PublishOutcome::LogLost;
                for _ in 0..n {
                    // Empty if the queue was given up meanwhile.
                    let Some(step) = self.steps.pop() else { break };
                    self.step_done(now, step, lost, log_kept);
                }
            }
        }
    }

    fn renewed(&mut self, epoch: u32, lease_kept: bool, log_kept: bool) {
        let lost = !lease_kept || !log_kept;
        let in_use = epoch == self.epoch
            || self
                .announced
                .as_ref()
                .is_some_and(|record| record.epoch == epoch);
        if lost && in_use && self.phase == Phase::Open {
            self.republish();
        }
    }

    fn step_done(&mut self, now: Duration, step: Step, lost: bool, log_kept: bool) {
        match step {
            Step::Append { bytes, kind, .. } => {
                if lost {
                    // An old log that is gone needs no Rotate: whoever read it starts over.
                    if kind != Kind::Rotate && self.phase != Phase::Closed {
                        self.republish();
                    }
                } else {
                    self.stats.entries += 1;
                    self.stats.bytes += bytes.len() as u64;
                    if self.phase == Phase::Opening {
                        self.phase = Phase::Opened;
                    }
                }
            }
            Step::Announce(record) => {
                self.announced = Some(*record);
                self.renewals.clear();
                self.renew_at = now + self.config.lease_ttl / 3;
                if !log_kept && self.phase == Phase::Open {
                    self.republish();
                }
            }
            Step::Retire { .. } => {}
        }
    }

    /// Leaves the store alone for a while, at most for the time between two renewals: the lease of a
    /// node whose store is full is kept by trying to renew it. Nodes are spread out a little, so that
    /// they do not all come back at the same moment.
    fn pause(&mut self, now: Duration, longest: bool) {
        self.stats.retries += 1;
        let most = self.config.retry_max.min(self.config.lease_ttl / 3);
        let doubled = self.config.retry_min * (1 << self.failures.min(16));
        let pause = if longest { most } else { doubled.min(most) };
        self.failures = self.failures.saturating_add(1);
        let spread = self.info.node().incarnation.rotate_left(self.failures) % 64;
        self.retry_at = Some(now + pause - pause / 256 * spread as u32);
    }
}
