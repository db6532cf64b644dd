//! The metadata store as one node reaches it: it may be stopped, refuse everybody, be full, or be out
//! of this node's reach; calls are lost or late; and all that is exchanged is counted.
//!
//! Knows nothing of what records and entries say.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flexkv_index::pace::{
    CURSOR_BYTES, ENTRY_FRAMING, LOG_FRAMING, MEMBER_BYTES, MEMBERS_LOOKED_AT,
};
use flexkv_ports::{
    BoxFuture, Faults, FaultyStore, HeapStore, LogCursor, LogEntry, LogRead, Member, MetadataStore,
    Renewal, StoreError, StoreFaults,
};

use tokio::sync::Notify;

use crate::pauses::Pauses;

/// How the store treats everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As it should.
    #[default]
    Well,
    /// Wrong password.
    Denying,
    /// Out of memory: takes nothing, but keeps what it has alive.
    Full,
}

#[derive(Default)]
struct State {
    mood: Mood,
    stopped: bool,
    /// Nodes that do not reach it.
    cut: BTreeSet<String>,
    /// All logs that were ever made.
    logs: BTreeSet<String>,
}

/// What was exchanged so far, all nodes together; bytes as a real store would need them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Calls of any kind.
    pub(crate) calls: u64,
    /// Readings of logs.
    pub(crate) reads: u64,
    /// Bytes sent to the store.
    pub(crate) asked: u64,
    /// Bytes sent by the store.
    pub(crate) answered: u64,
}

#[derive(Default)]
struct Meter {
    calls: AtomicU64,
    reads: AtomicU64,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// The store of a simulated cluster.
#[derive(Clone)]
pub(crate) struct Store {
    heap: HeapStore,
    faults: Faults,
    pauses: Pauses,
    state: Arc<Mutex<State>>,
    /// It has stopped. Wakes in the order of waiting.
    stopped: Arc<Notify>,
    meter: Arc<Meter>,
}

impl Store {
    pub(crate) fn new(seed: u64, pauses: Pauses) -> Self {
        Self {
            heap: HeapStore::new(),
            faults: Faults::new(seed),
            pauses,
            state: Arc::default(),
            stopped: Arc::default(),
            meter: Arc::default(),
        }
    }

    /// The store as node `name` reaches it.
    pub(crate) fn of(&self, name: &str) -> NodeStore {
        NodeStore {
            inner: FaultyStore::new(self.heap.clone(), self.faults.clone()),
            store: self.clone(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn set_weather(&self, weather: StoreFaults) {
        self.faults.set_store(weather);
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    pub(crate) fn mood(&self) -> Mood {
        self.state().mood
    }

    /// Stops it, or starts it again; what it kept is still there.
    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.state().stopped = stopped;
        if stopped {
            self.stopped.notify_waiters();
        }
    }

    /// Takes a node out of its reach, or lets it in again; says which.
    pub(crate) fn toggle_cut(&self, name: &str) -> bool {
        let mut state = self.state();
        if state.cut.remove(name) {
            return false;
        }
        state.cut.insert(name.to_owned())
    }

    pub(crate) fn flush(&self) {
        self.heap.flush();
    }

    /// Loses one log, as a store does that is short of memory, or the end of it, as one does that fails
    /// over to a late replica.
    pub(crate) fn damage(&self, rng: &mut fastrand::Rng) -> Option<String> {
        let logs = self.logs();
        let log = rng.choice(&logs)?.clone();
        if rng.bool() {
            self.heap.evict_log(&log);
        } else {
            self.heap.cut_log(&log, rng.u64(1..200));
        }
        Some(log)
    }

    /// Everything works again.
    pub(crate) fn repair(&self) {
        self.faults.quiet();
        let mut state = self.state();
        state.mood = Mood::Well;
        state.stopped = false;
        state.cut.clear();
    }

    /// Names under which it keeps leases now.
    pub(crate) async fn leases(&self) -> Vec<String> {
        let members = self.heap.members().await.unwrap_or_default();
        members.into_iter().map(|member| member.name).collect()
    }

    /// Logs that were ever made, whether they are still there or not.
    pub(crate) fn logs(&self) -> Vec<String> {
        self.state().logs.iter().cloned().collect()
    }

    /// Entries and bytes of a log that it keeps now; `None` if it has none of that name.
    pub(crate) async fn log_size(&self, log: &str) -> Option<(usize, usize)> {
        let cursor = LogCursor {
            log: log.to_owned(),
            after: 0,
        };
        let read = self.heap.read(&[cursor], usize::MAX, Duration::ZERO).await;
        let entries = read.unwrap_or_default().pop()?.entries;
        Some((entries.len(), entries.iter().map(|e| e.bytes.len()).sum()))
    }

    /// What was exchanged so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            calls: load(&self.meter.calls),
            reads: load(&self.meter.reads),
            asked: load(&self.meter.asked),
            answered: load(&self.meter.answered),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, asked: u64, answered: u64) {
        self.meter.calls.fetch_add(1, Ordering::Relaxed);
        self.meter.asked.fetch_add(asked, Ordering::Relaxed);
        self.meter.answered.fetch_add(answered, Ordering::Relaxed);
    }
}

/// The store as one node reaches it.
pub(crate) struct NodeStore {
    inner: FaultyStore<HeapStore>,
    store: Store,
    name: String,
}

impl NodeStore {
    /// Makes a call, unless something is in its way.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.store.pauses.until_running(&self.name).await;
        self.in_reach().await?;
        if self.store.state().stopped {
            return Err(stopped());
        }
        if self.store.mood() == Mood::Denying {
            let reason = "WRONGPASS".to_owned();
            return Err(StoreError::Denied { reason });
        }
        let result = tokio::select! {
            biased;
            () = self.store.stopped.notified() => Err(stopped()),
            result = call => result,
        };
        self.store.pauses.until_running(&self.name).await;
        self.in_reach().await?;
        result
    }

    async fn in_reach(&self) -> Result<(), StoreError> {
        if !self.store.state().cut.contains(&self.name) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let reason = format!("{} is cut off", self.name);
        Err(StoreError::Unavailable { reason })
    }

    /// A full store keeps a lease and a log alive, with the record it has.
    async fn renew_full(&self, name: &str, log: &str, ttl: Duration) -> StoreError {
        let members = self.inner.members().await.unwrap_or_default();
        if let Some(member) = members.into_iter().find(|member| member.name == name) {
            let kept = self.inner.renew(name, member.record, log, ttl).await;
            drop(kept);
        }
        full()
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable {
        reason: "it is stopped".to_owned(),
    }
}

fn full() -> StoreError {
    StoreError::Full {
        reason: "OOM".to_owned(),
    }
}

impl MetadataStore for NodeStore {
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        self.store.count(MEMBER_BYTES, ENTRY_FRAMING);
        Box::pin(self.call(async move {
            match self.store.mood() {
                Mood::Full => Err(self.renew_full(name, log, ttl).await),
                _ => self.inner.renew(name, record, log, ttl).await,
            }
        }))
    }

    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.count(CURSOR_BYTES, ENTRY_FRAMING);
        Box::pin(self.call(self.inner.leave(name, log)))
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>> {
        Box::pin(self.call(async move {
            let members = self.inner.members().await?;
            let looked_at = MEMBERS_LOOKED_AT.min(members.len() as u64);
            self.store.count(0, MEMBER_BYTES * looked_at);
            Ok(members)
        }))
    }

    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let said = |entry: &LogEntry| entry.bytes.len() as u64 + ENTRY_FRAMING;
        let asked = entries.iter().map(said).sum::<u64>() + LOG_FRAMING;
        self.store.count(asked, ENTRY_FRAMING);
        Box::pin(self.call(async move {
            if self.store.mood() == Mood::Full {
                return Err(full());
            }
            if create {
                self.store.state().logs.insert(log.to_owned());
            }
            self.inner.append(log, entries, create, ttl).await
        }))
    }

    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>> {
        self.store.meter.reads.fetch_add(1, Ordering::Relaxed);
        Box::pin(self.call(async move {
            let reads = self.inner.read(cursors, limit, wait).await?;
            let entries = reads.iter().flat_map(|read| &read.entries);
            let said: u64 = entries.map(|e| e.bytes.len() as u64 + ENTRY_FRAMING).sum();
            let asked = CURSOR_BYTES * cursors.len() as u64;
            self.store
                .count(asked, said + LOG_FRAMING * reads.len() as u64);
            Ok(reads)
        }))
    }

    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.count(CURSOR_BYTES, ENTRY_FRAMING);
        Box::pin(self.call(self.inner.retire(log, ttl)))
    }
}
