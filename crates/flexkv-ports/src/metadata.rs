//! The metadata store: leases with a record, and ordered logs, all of which expire unless renewed.
//!
//! The store sees names and bytes. It knows nothing of blocks, nodes or what a log entry says, and
//! it may vanish and come back empty at any moment; [`Renewal`] and [`StoreError::LogLost`] tell
//! the owner, who publishes again.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its sequence number, chosen by the log's only writer, ascending by 1, first is at least 1.
    pub sequence: u64,
    /// Its content.
    pub bytes: Bytes,
}

/// From where to read a log on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The log's name.
    pub log: String,
    /// Entries with a higher sequence number are wanted.
    pub after: u64,
}

/// What was read of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRead {
    /// The log's name.
    pub log: String,
    /// Entries in ascending order, never empty. The first may be beyond `after + 1` if the store
    /// lost entries in between.
    pub entries: Vec<LogEntry>,
}

/// Someone who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name it renews under.
    pub name: String,
    /// The record it last gave.
    pub record: Bytes,
}

/// What the store still had when a lease was renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The lease had not expired and was not lost. False at the first renewal, after an expiry,
    /// and after the store lost its content: then everything must be published again.
    pub lease_kept: bool,
    /// The log exists, and the last entry that was appended to it, as far as the store knows of, has
    /// not been lost. False after a failover to a replica that had not everything yet.
    pub log_kept: bool,
}

/// Why the store did not do what it was asked, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Wrong or missing credentials. Retrying is useless until an operator changes something, but
    /// harmless.
    #[error("the metadata store refuses us: {reason}")]
    Denied {
        /// The store's own words.
        reason: String,
    },
    /// The store takes no more data. Retry later; reading still works.
    #[error("the metadata store is full: {reason}")]
    Full {
        /// The store's own words.
        reason: String,
    },
    /// The log to append to is gone, or its end is. Publish a new one.
    #[error("log `{log}` is gone from the metadata store")]
    LogLost {
        /// The log's name.
        log: String,
    },
    /// No answer in time, or no connection. The command may or may not have been done. Retry.
    #[error("the metadata store cannot be reached: {reason}")]
    Unavailable {
        /// What was tried and what happened.
        reason: String,
    },
}

/// Keeps leases and logs for a cluster. Every call ends within the implementation's time-out.
pub trait MetadataStore: Send + Sync + 'static {
    /// Renews the lease `name` with `record`, and the expiry of `log`, for `ttl`.
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>>;

    /// Gives the lease `name` up and deletes `log`, at once.
    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Everyone whose lease has not expired, in no particular order.
    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>>;

    /// Appends `entries` (consecutive, ascending) to `log`. With `create` the log is made if it
    /// does not exist, and expires after `ttl` unless renewed; without, a missing log is
    /// [`StoreError::LogLost`]. So is one whose end is missing: its last entry is not the one before
    /// the first of `entries`. Appending an entry that is there already does nothing, so a call
    /// whose fate is unknown can be repeated as it was.
    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Entries after each cursor, at most `limit` per log; waits up to `wait` until there is at
    /// least one. Logs without news are left out; a log that does not exist has no news.
    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>>;

    /// Lets `log` expire after `ttl`, whatever is appended to or read from it meanwhile.
    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>>;
}
