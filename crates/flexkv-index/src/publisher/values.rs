//! What goes into a publisher and comes out of it: configuration, actions, outcomes, counters.
//! Knows nothing of how they are used.

use std::time::Duration;

use bytes::Bytes;

use crate::log::MAX_ENTRY_BLOCKS;

/// How a publisher goes about it.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// How long a change waits for others to share an entry with; longer if the share of the store
    /// wants it ([`crate::Share::after_publishing`]).
    pub batch_interval: Duration,
    /// How long it waits at most, whatever the share.
    pub batch_interval_max: Duration,
    /// How long lease and log outlive the last renewal.
    pub lease_ttl: Duration,
    /// Most blocks of one entry; [`MAX_ENTRY_BLOCKS`] at most.
    pub max_entry_blocks: usize,
    /// Most bytes appended in one action, unless a single entry is longer.
    pub max_append_bytes: usize,
    /// Most bytes of changes waiting for the store; over that they are dropped, and a checkpoint is
    /// published in their stead.
    pub max_queue_bytes: usize,
    /// First pause after a failure; doubles with each further one.
    pub retry_min: Duration,
    /// Longest pause after failures; never longer than a third of the lease.
    pub retry_max: Duration,
    /// A log is not begun anew before it has this many bytes of deltas.
    pub rotate_min_bytes: usize,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        Self {
            batch_interval: Duration::from_millis(2),
            batch_interval_max: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(10),
            max_entry_blocks: MAX_ENTRY_BLOCKS,
            max_append_bytes: 512 << 10,
            max_queue_bytes: 16 << 20,
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_secs(2),
            rotate_min_bytes: 1 << 20,
        }
    }
}

/// What to ask of the metadata store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishAction {
    /// Append these entries to the log.
    Append {
        /// The log's name.
        log: String,
        /// Sequences and bytes, consecutive and ascending.
        entries: Vec<(u64, Bytes)>,
        /// Make the log if it is not there.
        create: bool,
        /// How long the log lives unless renewed.
        ttl: Duration,
    },
    /// Renew the lease and the log.
    Renew {
        /// The lease's name.
        name: String,
        /// The record to keep under it.
        record: Bytes,
        /// The log's name.
        log: String,
        /// How long both live unless renewed.
        ttl: Duration,
    },
    /// Let the log expire.
    Retire {
        /// The log's name.
        log: String,
        /// After how long.
        ttl: Duration,
    },
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It was done.
    Done,
    /// A renewal was done, and this is what the store still had.
    Renewed {
        /// The lease had not lapsed.
        lease_kept: bool,
        /// The log exists.
        log_kept: bool,
    },
    /// The log to append to is gone.
    LogLost,
    /// No answer; it may have been done or not.
    Unavailable,
    /// The store refuses us.
    Denied,
    /// The store takes no more data.
    Full,
}

/// What a publisher has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Epochs begun, of either kind.
    pub epochs: u64,
    /// Of those: because the log had grown long.
    pub rotations: u64,
    /// Times the store was found to have lost the lease or the log.
    pub losses: u64,
    /// Times the queue ran over.
    pub overflows: u64,
    /// Entries that did not wait as long as the share of the store wanted.
    pub over_budget: u64,
    /// Actions that failed and are tried again.
    pub retries: u64,
    /// Entries that the store has taken.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}
