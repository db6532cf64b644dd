//! Planted bugs between a node and the store: what it says is changed on the way, well-formed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flexkv_index::NodeId;
use flexkv_index::log::{Batch, Entry, EntryPlace, Op};
use flexkv_ports::{
    BoxFuture, LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError,
};
use tokio::time::Instant;

/// Which bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreBug {
    ForgetRemovals,
    ForgetAdditions,
    StaleMembers,
    NobodyOnError,
    ImmortalLogs,
}

/// A list of members is kept for so long by [`StoreBug::StaleMembers`].
const STALE: Duration = Duration::from_secs(60);
/// How long logs live with [`StoreBug::ImmortalLogs`].
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// A store with a bug.
pub(super) struct PlantedStore {
    inner: Arc<dyn MetadataStore>,
    bug: StoreBug,
    listed: Mutex<Option<(Instant, Vec<Member>)>>,
}

impl PlantedStore {
    pub(super) fn new(inner: Arc<dyn MetadataStore>, bug: StoreBug) -> Self {
        Self {
            inner,
            bug,
            listed: Mutex::default(),
        }
    }

    fn fresh(&self) -> Option<Vec<Member>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, members) = listed.as_ref()?;
        let known = self.bug == StoreBug::StaleMembers && at.elapsed() < STALE;
        known.then(|| members.clone())
    }

    /// The entry without what the bug leaves out.
    fn forgetful(&self, log: &str, entry: &LogEntry) -> LogEntry {
        let changed = || {
            let (node, _) = NodeId::parse_log(log).ok()?;
            let place = EntryPlace {
                incarnation: node.incarnation,
                sequence: entry.sequence,
            };
            let Ok(Entry::Delta(batch)) = Entry::decode(&entry.bytes, place) else {
                return None;
            };
            Some(Entry::Delta(self.without(&batch)).encode(place))
        };
        let bytes = changed().unwrap_or_else(|| entry.bytes.clone());
        LogEntry {
            sequence: entry.sequence,
            bytes,
        }
    }

    fn without(&self, batch: &Batch) -> Batch {
        let mut left = Batch::default();
        for op in batch.ops() {
            match op {
                Op::Remove { fingerprints } if self.bug != StoreBug::ForgetRemovals => {
                    left.remove(fingerprints);
                }
                Op::Add {
                    parent,
                    fingerprints,
                    locations,
                } if self.bug != StoreBug::ForgetAdditions => {
                    left.add(parent, fingerprints, locations);
                }
                _ => {}
            }
        }
        left
    }
}

impl MetadataStore for PlantedStore {
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        self.inner.renew(name, record, log, ttl)
    }

    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.leave(name, log)
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>> {
        Box::pin(async move {
            if let Some(members) = self.fresh() {
                return Ok(members);
            }
            let members = match self.inner.members().await {
                Err(_) if self.bug == StoreBug::NobodyOnError => Vec::new(),
                members => members?,
            };
            let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            *listed = Some((Instant::now(), members.clone()));
            Ok(members)
        })
    }

    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let entries: Vec<_> = entries.iter().map(|e| self.forgetful(log, e)).collect();
            let ttl = match self.bug {
                StoreBug::ImmortalLogs => FOR_EVER,
                _ => ttl,
            };
            self.inner.append(log, &entries, create, ttl).await
        })
    }

    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>> {
        self.inner.read(cursors, limit, wait)
    }

    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>> {
        let ttl = match self.bug {
            StoreBug::ImmortalLogs => FOR_EVER,
            _ => ttl,
        };
        self.inner.retire(log, ttl)
    }
}
