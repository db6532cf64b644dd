//! A metadata store in memory. Leases and logs expire by tokio's clock, so virtual time works.
//!
//! It can be emptied like a store that was flushed or restarted, which real stores do at will.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::{LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError};

/// Longer than any process lives; what is added to a clock's reading at most.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// A [`MetadataStore`] in memory. Clones are the same store.
#[derive(Clone, Default)]
pub struct HeapStore {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    content: Mutex<Content>,
    appended: Notify,
}

#[derive(Default)]
struct Content {
    leases: BTreeMap<String, Lease>,
    /// Looked up by name for every cursor of every reading, and never gone through in order.
    logs: HashMap<String, Log>,
}

struct Lease {
    record: Bytes,
    expires: Instant,
}

struct Log {
    /// The sequence number of the last entry.
    last: u64,
    /// The highest sequence number ever appended.
    appended: u64,
    entries: VecDeque<LogEntry>,
    expires: Instant,
}

impl HeapStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything, as a store does that is flushed or restarts empty.
    pub fn flush(&self) {
        *self.content() = Content::default();
    }

    /// Forgets one log, as a store does that runs out of memory; false if there is none.
    pub fn evict_log(&self, log: &str) -> bool {
        self.content().logs.remove(log).is_some()
    }

    /// Forgets a log's entries up to and including `sequence`; later ones and the log itself stay.
    pub fn trim_log(&self, log: &str, sequence: u64) {
        if let Some(log) = self.content().logs.get_mut(log) {
            log.entries.retain(|entry| entry.sequence > sequence);
        }
    }

    /// Forgets a log's entries after `sequence`, as a late replica does that takes over.
    pub fn cut_log(&self, log: &str, sequence: u64) {
        if let Some(log) = self.content().logs.get_mut(log) {
            log.entries.retain(|entry| entry.sequence <= sequence);
            log.last = log.last.min(sequence);
        }
    }

    /// What has not expired.
    fn content(&self) -> MutexGuard<'_, Content> {
        let now = Instant::now();
        let lock = self.inner.content.lock();
        let mut content = lock.unwrap_or_else(PoisonError::into_inner);
        content.leases.retain(|_, lease| lease.expires > now);
        content.logs.retain(|_, log| log.expires > now);
        content
    }

    fn renew_now(&self, name: &str, record: Bytes, log: &str, ttl: Duration) -> Renewal {
        let expires = after(ttl);
        let mut content = self.content();
        let lease = Lease { record, expires };
        let lease_kept = content.leases.insert(name.to_owned(), lease).is_some();
        let log = content.logs.get_mut(log);
        let log_kept = log.as_ref().is_some_and(|log| log.last == log.appended);
        if let Some(log) = log {
            log.expires = expires;
        }
        Renewal {
            lease_kept,
            log_kept,
        }
    }

    fn append_now(
        &self,
        log: &str,
        entries: &[LogEntry],
        create: bool,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let mut content = self.content();
        if create && !content.logs.contains_key(log) {
            content.logs.insert(log.to_owned(), Log::new(ttl));
        }
        let Some(found) = content.logs.get_mut(log) else {
            return Err(StoreError::LogLost {
                log: log.to_owned(),
            });
        };
        if !found.append(entries) {
            return Err(StoreError::LogLost {
                log: log.to_owned(),
            });
        }
        drop(content);
        self.inner.appended.notify_waiters();
        Ok(())
    }

    fn read_now(&self, cursors: &[LogCursor], limit: usize) -> Vec<LogRead> {
        let content = self.content();
        let read = cursors.iter().filter_map(|cursor| {
            let entries = content.logs.get(&cursor.log)?.after(cursor.after, limit);
            let log = cursor.log.clone();
            (!entries.is_empty()).then_some(LogRead { log, entries })
        });
        read.collect()
    }

    async fn read_waiting(
        &self,
        cursors: &[LogCursor],
        limit: usize,
        wait: Duration,
    ) -> Vec<LogRead> {
        let deadline = after(wait);
        loop {
            let mut appended = std::pin::pin!(self.inner.appended.notified());
            appended.as_mut().enable();
            let read = self.read_now(cursors, limit);
            if !read.is_empty() || timeout_at(deadline, appended).await.is_err() {
                return read;
            }
        }
    }
}

/// When `time` from now is.
fn after(time: Duration) -> Instant {
    Instant::now() + time.min(FOREVER)
}

impl Log {
    fn new(ttl: Duration) -> Self {
        Self {
            last: 0,
            appended: 0,
            entries: VecDeque::new(),
            expires: after(ttl),
        }
    }

    /// Appends the entries that are new; false if the log's end is missing before them.
    fn append(&mut self, entries: &[LogEntry]) -> bool {
        let first = entries.first().map_or(0, |entry| entry.sequence);
        if self.last > 0 && first > self.last + 1 {
            return false;
        }
        for entry in entries {
            if entry.sequence > self.last {
                self.last = entry.sequence;
                self.appended = self.appended.max(entry.sequence);
                self.entries.push_back(entry.clone());
            }
        }
        true
    }

    fn after(&self, after: u64, limit: usize) -> Vec<LogEntry> {
        let start = self.entries.partition_point(|e| e.sequence <= after);
        let news = self.entries.range(start..);
        news.take(limit).cloned().collect()
    }
}

impl MetadataStore for HeapStore {
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        Box::pin(async move { Ok(self.renew_now(name, record, log, ttl)) })
    }

    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut content = self.content();
            content.leases.remove(name);
            content.logs.remove(log);
            Ok(())
        })
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>> {
        Box::pin(async move {
            let content = self.content();
            let members = content.leases.iter().map(|(name, lease)| Member {
                name: name.clone(),
                record: lease.record.clone(),
            });
            Ok(members.collect())
        })
    }

    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.append_now(log, entries, create, ttl) })
    }

    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>> {
        Box::pin(async move { Ok(self.read_waiting(cursors, limit, wait).await) })
    }

    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let expires = after(ttl);
            if let Some(log) = self.content().logs.get_mut(log) {
                log.expires = expires;
            }
            Ok(())
        })
    }
}

impl std::fmt::Debug for HeapStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content = self.content();
        let (leases, logs) = (content.leases.len(), content.logs.len());
        write!(f, "HeapStore({leases} leases, {logs} logs)")
    }
}

#[cfg(test)]
mod tests;
