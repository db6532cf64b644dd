//! The store: each call of [`MetadataStore`] as a few commands.
//!
//! One connection for commands, and others for readers, which block on the server until there is
//! news. Time to live is the server's business alone; no clock is compared.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{
    BoxFuture, LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError,
};
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface, StreamsInterface};
use fred::types::{ClusterHash, CustomCommand, Expiration, SetOptions, Value};
use tokio::time::{Instant, sleep};

use crate::config::RedisConfig;
use crate::error::unavailable;
use crate::keys::Keys;
use crate::members::{self, Members};
use crate::reads::{Reads, Request};
use crate::reply::{self, Malformed};
use crate::scripts;
use crate::servers::Servers;

/// How often whoever renews makes sure that it is among the members.
const JOIN_EVERY: Duration = Duration::from_secs(60);
/// Longer times to live and waits are cut to this, far below what the server can count.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// An APPEND script takes entries up to this many bytes, so that it is over within milliseconds.
const APPEND_BYTES: usize = 4 << 20;
/// An APPEND script takes at most this many entries.
const APPEND_ENTRIES: usize = 4096;
/// Logs whose ends are remembered; one node writes to two at a time.
const ENDS_MAX: usize = 64;

/// A [`MetadataStore`] on Redis or Valkey, version 6.2 or later: one server, one that Sentinel
/// watches, or a cluster.
///
/// Needs a Tokio runtime with I/O and time. Dropping it closes its connections and ends its tasks.
///
/// A call takes at most the configuration's command time-out for each of its commands (members and
/// renewals: three; append: one for each 4 MiB; in a cluster each up to five times, as slots may
/// move), and a read its wait more. Readers of one store take turns at waiting: a second one gets
/// what there is when its wait is over, so follow all logs in one call. A read for other logs or
/// other entries than the one before costs new connections if that one still waits at the server.
pub struct RedisStore {
    servers: Servers,
    keys: Keys,
    address: String,
    command_timeout: Duration,
    members: Members,
    reads: Reads,
    /// When each name that we renew was last made known, and with which record.
    joined: Mutex<BTreeMap<String, (Instant, Bytes)>>,
    /// The last entry that the server took from us, of each log.
    ends: Mutex<BTreeMap<String, u64>>,
}

impl RedisStore {
    /// Connects; fails if the server cannot be reached or refuses us now.
    pub async fn connect(config: RedisConfig) -> Result<Self, StoreError> {
        let store = Self::connect_lazily(config);
        let slot = store.keys.lease_slot();
        store.servers.first_outcome(slot).await?;
        Ok(store)
    }

    /// Begins to connect, and goes on trying for as long as it lives. Calls fail until the server
    /// is there.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect_lazily(config: RedisConfig) -> Self {
        Self {
            servers: Servers::open(&config),
            keys: Keys::new(&config.cluster, config.namespace),
            address: config.address().to_owned(),
            command_timeout: config.command_timeout,
            members: Members::default(),
            reads: Reads::new(),
            joined: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// What the server that has the leases says of itself in `section` of INFO.
    pub async fn server_info(&self, section: &str) -> Result<String, StoreError> {
        let info = |client: Client| async move {
            let command = CustomCommand::new_static("INFO", ClusterHash::FirstKey, false);
            client.custom(command, vec![section.to_owned()]).await
        };
        self.servers.quick(self.keys.lease_slot(), info).await
    }

    /// Runs a script, all of whose keys are in `slot`.
    async fn eval(
        &self,
        script: &'static str,
        slot: u16,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, StoreError> {
        let eval = |client: Client| {
            let (keys, args) = (keys.clone(), args.clone());
            async move { client.eval(script, keys, args).await }
        };
        self.servers.quick(slot, eval).await
    }

    fn lease_keys(&self, name: &str) -> Vec<String> {
        vec![
            self.keys.members(),
            self.keys.changes(),
            self.keys.gone(),
            self.keys.lease(name),
        ]
    }

    async fn expire(&self, slot: u16, key: &str, ttl: Duration) -> Result<bool, StoreError> {
        let pexpire = |client: Client| async move {
            let set = client.pexpire(key, milliseconds(ttl), None);
            set.await.map(|set: Value| set == Value::Integer(1))
        };
        self.servers.quick(slot, pexpire).await
    }

    fn malformed(&self, command: &str) -> impl FnOnce(Malformed) -> StoreError {
        let what = format!("the answer to {command} makes no sense");
        let error = unavailable(&self.address, &what);
        move |Malformed| error
    }

    async fn renew_now(
        &self,
        name: &str,
        record: Bytes,
        log: &str,
        ttl: Duration,
    ) -> Result<Renewal, StoreError> {
        // The log is kept alive even if the record is not taken: its owner is not dead.
        let (slot, key) = (self.keys.log_slot(log), self.keys.log(log));
        let (lease, exists, complete) = tokio::join!(
            self.renew_lease(name, record, ttl),
            self.expire(slot, &key, ttl),
            self.has_its_end(log),
        );
        let (lease_kept, exists, complete) = (lease?, exists?, complete?);
        Ok(Renewal {
            lease_kept,
            log_kept: exists && complete,
        })
    }

    /// Renews a lease; says whether it was held.
    async fn renew_lease(
        &self,
        name: &str,
        record: Bytes,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let (slot, key) = (self.keys.lease_slot(), self.keys.lease(name));
        let is_known = lock(&self.joined)
            .get(name)
            .is_some_and(|(at, known)| at.elapsed() < JOIN_EVERY && *known == record);
        let renewed = if is_known {
            self.extend_lease(&key, &record, ttl).await
        } else {
            Ok(false)
        };
        let renewed = match renewed {
            Ok(false) => self.join(name, record, ttl).await,
            renewed => renewed,
        };
        if matches!(renewed, Err(StoreError::Full { .. })) {
            self.expire(slot, &key, ttl).await?;
        }
        renewed
    }

    /// Renews a lease if it is held; says whether it is.
    async fn extend_lease(
        &self,
        key: &str,
        record: &Bytes,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let set = |client: Client| async move {
            let expire = Some(Expiration::PX(milliseconds(ttl)));
            let record = Value::Bytes(record.clone());
            let set = client.set(key, record, expire, Some(SetOptions::XX), false);
            set.await.map(|set: Value| !set.is_null())
        };
        self.servers.quick(self.keys.lease_slot(), set).await
    }

    /// Takes a lease; says whether it was held already.
    async fn join(&self, name: &str, record: Bytes, ttl: Duration) -> Result<bool, StoreError> {
        let keys = self.lease_keys(name);
        let mut args = members::args(ttl);
        args.push(milliseconds(ttl).into());
        args.push(Value::Bytes(record.clone()));
        let slot = self.keys.lease_slot();
        let reply = self.eval(scripts::JOIN, slot, keys, args).await?;
        let kept = reply::flag(&reply).map_err(self.malformed("EVAL (join)"))?;
        let mut joined = lock(&self.joined);
        joined.retain(|_, (at, _)| at.elapsed() < JOIN_EVERY);
        joined.insert(name.to_owned(), (Instant::now(), record));
        Ok(kept)
    }

    /// Whether the last entry that the server took from us is still in `log`.
    async fn has_its_end(&self, log: &str) -> Result<bool, StoreError> {
        let Some(end) = lock(&self.ends).get(log).copied() else {
            return Ok(true);
        };
        let (key, id) = (self.keys.log(log), format!("{end}-0"));
        let xrange = |client: Client| {
            let (key, first, last) = (key.clone(), id.clone(), id.clone());
            async move { client.xrange(key, first, last, None).await }
        };
        let slot = self.keys.log_slot(log);
        let found: Value = self.servers.quick(slot, xrange).await?;
        Ok(found.array_len().unwrap_or_default() > 0)
    }

    async fn append_now(
        &self,
        log: &str,
        entries: &[LogEntry],
        create: bool,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let mut create = create;
        for part in parts(entries) {
            let keys = vec![self.keys.log(log)];
            let args = append_args(part, create, ttl);
            let slot = self.keys.log_slot(log);
            let reply = self.eval(scripts::APPEND, slot, keys, args).await?;
            if !reply::flag(&reply).map_err(self.malformed("EVAL (append)"))? {
                lock(&self.ends).remove(log);
                let log = log.to_owned();
                return Err(StoreError::LogLost { log });
            }
            if let Some(last) = part.last() {
                self.note_end(log, last.sequence);
            }
            // A log that is lost between two parts must not begin in its middle.
            create = false;
        }
        Ok(())
    }

    fn note_end(&self, log: &str, sequence: u64) {
        let mut ends = lock(&self.ends);
        match ends.get_mut(log) {
            Some(end) => *end = sequence.max(*end),
            None => {
                if ends.len() == ENDS_MAX {
                    ends.clear();
                }
                ends.insert(log.to_owned(), sequence);
            }
        }
    }

    async fn read_now(
        &self,
        cursors: &[LogCursor],
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<LogRead>, StoreError> {
        let wait = wait.min(MAX_TTL);
        if cursors.is_empty() || limit == 0 {
            sleep(wait).await;
            return Ok(Vec::new());
        }
        let request = Request {
            servers: &self.servers,
            keys: &self.keys,
            cursors,
            limit,
            timeout: self.command_timeout,
        };
        self.reads.read(&request, wait).await
    }

    async fn leave_now(&self, name: &str, log: &str) -> Result<(), StoreError> {
        lock(&self.joined).remove(name);
        lock(&self.ends).remove(log);
        let keys = self.lease_keys(name);
        let key = self.keys.log(log);
        let unlink = |client: Client| {
            let key = key.clone();
            async move { client.unlink(key).await.map(|_: Value| ()) }
        };
        let args = members::args(Duration::ZERO);
        let left = self.eval(scripts::LEAVE, self.keys.lease_slot(), keys, args);
        let unlinked = self.servers.quick(self.keys.log_slot(log), unlink);
        let (left, unlinked) = tokio::join!(left, unlinked);
        left.and(unlinked)
    }

    async fn retire_now(&self, log: &str, ttl: Duration) -> Result<(), StoreError> {
        lock(&self.ends).remove(log);
        let (slot, key) = (self.keys.log_slot(log), self.keys.log(log));
        self.expire(slot, &key, ttl).await.map(drop)
    }
}

impl MetadataStore for RedisStore {
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        Box::pin(self.renew_now(name, record, log, ttl))
    }

    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.leave_now(name, log))
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>> {
        Box::pin(self.members.list(&self.servers, &self.keys, &self.address))
    }

    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.append_now(log, entries, create, ttl))
    }

    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>> {
        Box::pin(self.read_now(cursors, limit, wait))
    }

    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.retire_now(log, ttl))
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.address)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For the server, which counts whole milliseconds and refuses 0.
pub(crate) fn milliseconds(time: Duration) -> i64 {
    let whole = time.min(MAX_TTL).as_nanos().div_ceil(1_000_000);
    i64::try_from(whole).unwrap_or(i64::MAX).max(1)
}

fn append_args(entries: &[LogEntry], create: bool, ttl: Duration) -> Vec<Value> {
    let before = entries
        .first()
        .map_or(0, |first| first.sequence.saturating_sub(1));
    let mut args: Vec<Value> = vec![
        i64::from(create).into(),
        milliseconds(ttl).into(),
        before.to_string().into(),
    ];
    for entry in entries {
        args.push(entry.sequence.to_string().into());
        args.push(Value::Bytes(entry.bytes.clone()));
    }
    args
}

/// Cuts `entries` into parts for one APPEND each; one empty part if there are none.
fn parts(entries: &[LogEntry]) -> Vec<&[LogEntry]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, entry) in entries.iter().enumerate() {
        let full = bytes + entry.bytes.len() > APPEND_BYTES || i - start == APPEND_ENTRIES;
        if full && i > start {
            parts.push(&entries[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += entry.bytes.len();
    }
    parts.push(&entries[start..]);
    parts
}

#[cfg(test)]
mod tests;
