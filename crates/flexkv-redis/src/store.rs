//! The store: each call of [`MetadataStore`] as one or two commands.
//!
//! Two connections: one for commands, one for readers, which block on the server until there is
//! news. Time to live is the server's business alone; no clock is compared.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{
    BoxFuture, LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError,
};
use fred::clients::Client;
use fred::interfaces::{KeysInterface, LuaInterface, SetsInterface, StreamsInterface};
use fred::types::Value;
use fred::types::streams::XID;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::config::RedisConfig;
use crate::error::unavailable;
use crate::keys::Keys;
use crate::link::{IfDropped, Link};
use crate::reply::{self, Malformed};
use crate::scripts;

/// The set of members outlives every lease by far, but not a cluster that is gone.
const MEMBERS_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longer times to live and waits are cut to this, far below what the server can count.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// An APPEND script takes entries up to this many bytes, so that it is over within milliseconds.
const APPEND_BYTES: usize = 4 << 20;
/// An APPEND script takes at most this many entries.
const APPEND_ENTRIES: usize = 4096;
/// One XREAD asks for at most this many entries over all logs.
const READ_ENTRIES: usize = 4096;

/// A [`MetadataStore`] on a Redis or Valkey server, version 6.2 or later.
///
/// Needs a Tokio runtime with I/O and time. Dropping it closes its connections and ends its tasks.
///
/// A call takes at most the configuration's command time-out for each of its commands (members:
/// two; append: one for each 4 MiB), and a read its wait more. Readers of one store take turns at
/// waiting: a second one gets what there is when its wait is over, so follow all logs in one call.
/// A read that is dropped before it ends costs a new connection.
pub struct RedisStore {
    keys: Keys,
    address: String,
    command_timeout: Duration,
    commands: Link,
    reads: Link,
    /// Held by whoever blocks on `reads`.
    reading: Mutex<()>,
    /// How many entries to ask for in one XREAD; fewer after one that took too long.
    read_entries: AtomicUsize,
}

impl RedisStore {
    /// Connects; fails if the server cannot be reached or refuses us now.
    pub async fn connect(config: RedisConfig) -> Result<Self, StoreError> {
        let store = Self::connect_lazily(config);
        tokio::try_join!(store.commands.first_outcome(), store.reads.first_outcome())?;
        Ok(store)
    }

    /// Begins to connect, and goes on trying for as long as it lives. Calls fail until the server
    /// is there.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect_lazily(config: RedisConfig) -> Self {
        Self {
            keys: Keys::new(&config.cluster, config.namespace),
            address: config.address().to_owned(),
            command_timeout: config.command_timeout,
            commands: Link::open(&config),
            reads: Link::open(&config),
            reading: Mutex::new(()),
            read_entries: AtomicUsize::new(READ_ENTRIES),
        }
    }

    /// Runs a script. All its keys are in one slot.
    async fn eval(
        &self,
        script: &'static str,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, StoreError> {
        let eval = |client: Client| async move { client.eval(script, keys, args).await };
        let limit = self.command_timeout;
        self.commands.call(limit, IfDropped::Keep, eval).await
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
        let keys = self.lease_and_log(name, log);
        let members_ttl = milliseconds(ttl).max(milliseconds(MEMBERS_TTL));
        let args = vec![
            Value::Bytes(record),
            milliseconds(ttl).into(),
            members_ttl.into(),
        ];
        let reply = self.eval(scripts::RENEW, keys, args).await?;
        reply::renewal(reply).map_err(self.malformed("EVAL (renew)"))
    }

    fn lease_and_log(&self, name: &str, log: &str) -> Vec<String> {
        vec![
            self.keys.lease(name),
            self.keys.log(log),
            self.keys.members(),
        ]
    }

    async fn members_now(&self) -> Result<Vec<Member>, StoreError> {
        let members = self.keys.members();
        let smembers = |client: Client| async move { client.smembers(members).await };
        let limit = self.command_timeout;
        let reply = self.commands.call(limit, IfDropped::Keep, smembers).await?;
        let leases = reply::lease_keys(reply).map_err(self.malformed("SMEMBERS"))?;
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut keys = vec![self.keys.members()];
        keys.extend(leases.iter().cloned());
        let reply = self.eval(scripts::RECORDS, keys, Vec::new()).await?;
        let records =
            reply::records(reply, leases.len()).map_err(self.malformed("EVAL (records)"))?;
        let member = |(key, record): (String, Option<Bytes>)| {
            let name = self.keys.lease_name(&key)?.to_owned();
            record.map(|record| Member { name, record })
        };
        Ok(leases.into_iter().zip(records).filter_map(member).collect())
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
            let reply = self
                .eval(
                    scripts::APPEND,
                    vec![self.keys.log(log)],
                    append_args(part, create, ttl),
                )
                .await?;
            match reply {
                Value::Integer(1) => {}
                Value::Integer(0) => {
                    let log = log.to_owned();
                    return Err(StoreError::LogLost { log });
                }
                _ => return Err(self.malformed("EVAL (append)")(Malformed)),
            }
            // A log that is lost between two parts must not begin in its middle.
            create = false;
        }
        Ok(())
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
        let begun = Instant::now();
        let reply = match timeout(wait, self.reading.lock()).await {
            Ok(_reading) => {
                let wait = wait.saturating_sub(begun.elapsed());
                self.xread(&self.reads, cursors, limit, wait).await
            }
            // Another reader has the connection for longer than we may wait.
            Err(_) => {
                self.xread(&self.commands, cursors, limit, Duration::ZERO)
                    .await
            }
        };
        reply::logs(reply?, &self.keys).map_err(self.malformed("XREAD"))
    }

    async fn xread(
        &self,
        link: &Link,
        cursors: &[LogCursor],
        limit: usize,
        wait: Duration,
    ) -> Result<Value, StoreError> {
        let asked = self.read_entries.load(Ordering::Relaxed);
        let count = limit.min((asked / cursors.len()).max(1)) as u64;
        let keys: Vec<_> = cursors.iter().map(|c| self.keys.log(&c.log)).collect();
        let ids: Vec<_> = cursors.iter().map(|c| after(c.after)).collect();
        let block = (!wait.is_zero()).then(|| milliseconds(wait) as u64);
        let if_dropped = match block {
            Some(_) => IfDropped::Close,
            None => IfDropped::Keep,
        };
        let xread =
            |client: Client| async move { client.xread(Some(count), block, keys, ids).await };
        let limit = wait + self.command_timeout;
        let begun = Instant::now();
        let reply = link.call(limit, if_dropped, xread).await;
        // A reply may be too large for the time-out: ask for less next time, until it fits.
        let next = match reply {
            Err(_) if begun.elapsed() >= limit => (asked / 2).max(1),
            _ => (asked * 2).min(READ_ENTRIES),
        };
        self.read_entries.store(next, Ordering::Relaxed);
        reply
    }

    async fn leave_now(&self, name: &str, log: &str) -> Result<(), StoreError> {
        let keys = self.lease_and_log(name, log);
        self.eval(scripts::LEAVE, keys, Vec::new()).await?;
        Ok(())
    }

    async fn retire_now(&self, log: &str, ttl: Duration) -> Result<(), StoreError> {
        let key = self.keys.log(log);
        let ttl = milliseconds(ttl);
        let pexpire = |client: Client| async move { client.pexpire(key, ttl, None).await };
        let limit = self.command_timeout;
        let reply = self.commands.call(limit, IfDropped::Keep, pexpire).await;
        reply.map(|_: Value| ())
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
        Box::pin(self.members_now())
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

/// For the server, which counts whole milliseconds and refuses 0.
fn milliseconds(time: Duration) -> i64 {
    let whole = time.min(MAX_TTL).as_nanos().div_ceil(1_000_000);
    i64::try_from(whole).unwrap_or(i64::MAX).max(1)
}

/// The greatest stream ID of sequence number `sequence`.
fn after(sequence: u64) -> XID {
    XID::Manual(format!("{sequence}-{}", u64::MAX).into())
}

fn append_args(entries: &[LogEntry], create: bool, ttl: Duration) -> Vec<Value> {
    let mut args = vec![i64::from(create).into(), milliseconds(ttl).into()];
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
