//! How fast a node may use the metadata store, so that all nodes together stay within a budget.
//!
//! Every change is read by every node, so what a change costs grows with their number. A node that
//! knows how many nodes there are, and how many of them change things, can keep its part of the
//! budget without asking anyone. Half of the budget is for what is published; the other half for what
//! is asked whether there is news or not. What has been published must be read, so nothing here makes
//! a reader fall behind.
//!
//! Small clusters never notice: the pauses are fractions of a millisecond there. Knows no clock and
//! no store; the sizes of what stands around an entry are those of a stream in Redis, rounded up.

use std::time::Duration;

/// What a reply says around one entry.
pub const ENTRY_FRAMING: u64 = 40;
/// What a reply says around the entries of one log.
pub const LOG_FRAMING: u64 = 110;
/// What a request says of one log.
pub const CURSOR_BYTES: u64 = 125;
/// What looking at one member takes, both ways.
pub const MEMBER_BYTES: u64 = 500;
/// How many members one list looks at, if nothing has changed.
pub const MEMBERS_LOOKED_AT: u64 = 16;

/// One node's view of the cluster and of what it may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bytes a second that all nodes together may exchange with the store.
    pub bytes_per_second: u64,
    /// Nodes of the cluster, this one included.
    pub nodes: u32,
    /// Those of them that changed something lately; at least 1.
    pub active: u32,
}

impl Share {
    /// A node that is alone as far as it knows.
    pub fn alone(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            nodes: 1,
            active: 1,
        }
    }

    /// How long to publish nothing after an entry of `bytes`, which all nodes will read.
    pub fn after_publishing(&self, bytes: usize) -> Duration {
        let entry = bytes as u128 + u128::from(ENTRY_FRAMING + LOG_FRAMING);
        self.time(entry * u128::from(self.nodes) * u128::from(self.active), 2)
    }

    /// How often to list the members, if once in `interval` is wanted: an eighth of the budget.
    pub fn members_interval(&self, interval: Duration) -> Duration {
        let looked_at = u64::from(self.nodes).min(MEMBERS_LOOKED_AT);
        let bytes = u128::from(looked_at * MEMBER_BYTES) * u128::from(self.nodes);
        interval.max(self.time(bytes, 8))
    }

    /// How long from one reading of all logs to the next: a request names every log, so it costs
    /// even where it brings little. A quarter of the budget.
    pub fn read_interval(&self) -> Duration {
        let nodes = u128::from(self.nodes);
        self.time(u128::from(CURSOR_BYTES) * nodes * nodes, 4)
    }

    /// How long a part of the budget takes to earn `bytes`.
    fn time(&self, bytes: u128, part: u128) -> Duration {
        let nanos = bytes.saturating_mul(part * 1_000_000_000);
        let nanos = nanos / u128::from(self.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
