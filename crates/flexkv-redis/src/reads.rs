//! Waiting for news of logs: one blocked XREAD for each group of logs that one command can name.
//!
//! A wait goes on at the server beyond the call that began it, as long as the next call asks for
//! the same: so how often commands are sent does not depend on how often we are called. The more
//! groups, the longer each waits.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use flexkv_ports::{BoxFuture, LogCursor, LogRead, StoreError};
use fred::clients::Client;
use fred::interfaces::StreamsInterface;
use fred::types::Value;
use fred::types::streams::XID;
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::error::{Failed, unavailable};
use crate::keys::Keys;
use crate::link::IfDropped;
use crate::reply;
use crate::servers::{Pair, Servers};

/// How long the server waits before it answers that there is nothing, for each group.
const BLOCK: Duration = Duration::from_secs(5);
/// One XREAD asks for at most this many entries over all its logs.
const READ_ENTRIES: usize = 4096;

/// The waits that are under way. Readers take turns.
pub(crate) struct Reads {
    waits: Mutex<Waits>,
    /// How many entries to ask for in one XREAD; fewer after one that took too long.
    entries: Arc<AtomicUsize>,
}

/// A wait for each group.
type Waits = BTreeMap<u8, Wait>;
/// The cursors of each group.
type Groups = BTreeMap<u8, Vec<LogCursor>>;

struct Wait {
    cursors: Vec<LogCursor>,
    limit: usize,
    readers: Pair,
    /// What the connection for commands had been given up for when the wait began.
    given_up: u64,
    answer: BoxFuture<'static, Result<Value, Failed>>,
}

impl Wait {
    /// Whether it waits for just that, and its server was not found silent meanwhile.
    fn serves(&self, cursors: &[LogCursor], limit: usize) -> bool {
        self.limit == limit
            && self.cursors == cursors
            && self.given_up == self.readers.commands.given_up()
    }
}

/// What is read, of whom and how.
pub(crate) struct Request<'a> {
    pub(crate) servers: &'a Servers,
    pub(crate) keys: &'a Keys,
    pub(crate) cursors: &'a [LogCursor],
    /// Most entries of each log.
    pub(crate) limit: usize,
    /// How long a command may take beyond the time that the server waits.
    pub(crate) timeout: Duration,
}

impl Request<'_> {
    fn groups(&self) -> Groups {
        let mut groups = Groups::new();
        for cursor in self.cursors {
            let group = self.servers.group(&cursor.log);
            groups.entry(group).or_default().push(cursor.clone());
        }
        groups
    }

    fn slot(&self, cursors: &[LogCursor]) -> u16 {
        cursors.first().map_or(0, |c| self.keys.log_slot(&c.log))
    }

    fn keys_and_ids(&self, cursors: &[LogCursor]) -> (Vec<String>, Vec<XID>) {
        let pair = |c: &LogCursor| (self.keys.log(&c.log), after(c.after));
        cursors.iter().map(pair).unzip()
    }
}

impl Reads {
    pub(crate) fn new() -> Self {
        Self {
            waits: Mutex::default(),
            entries: Arc::new(AtomicUsize::new(READ_ENTRIES)),
        }
    }

    /// Waits up to `wait` for news.
    pub(crate) async fn read(
        &self,
        request: &Request<'_>,
        wait: Duration,
    ) -> Result<Vec<LogRead>, StoreError> {
        let deadline = Instant::now() + wait;
        let turn = match wait.is_zero() {
            true => None,
            false => timeout_at(deadline, self.waits.lock()).await.ok(),
        };
        match turn {
            Some(waits) => self.wait(request, waits, deadline).await,
            // Another reader waits for longer than we may.
            None => self.at_once(request).await,
        }
    }

    /// What there is now.
    async fn at_once(&self, request: &Request<'_>) -> Result<Vec<LogRead>, StoreError> {
        let groups = request.groups();
        let reads = groups.values().map(|cursors| async {
            let count = self.count(cursors.len(), request.limit);
            let (keys, ids) = request.keys_and_ids(cursors);
            let xread = |client: Client| {
                let (keys, ids) = (keys.clone(), ids.clone());
                async move { client.xread(Some(count), None, keys, ids).await }
            };
            let slot = request.slot(cursors);
            let reply = request.servers.quick(slot, xread).await?;
            self.logs(request, reply, "the server")
        });
        Ok(try_join_all(reads).await?.into_iter().flatten().collect())
    }

    async fn wait(
        &self,
        request: &Request<'_>,
        mut waits: MutexGuard<'_, Waits>,
        deadline: Instant,
    ) -> Result<Vec<LogRead>, StoreError> {
        let groups = request.groups();
        let limit = request.limit;
        let asked = |wait: &Wait, cursors: &Vec<LogCursor>| wait.serves(cursors, limit);
        waits.retain(|group, wait| groups.get(group).is_some_and(|c| asked(wait, c)));
        loop {
            let mut failed = self.begin(request, &groups, &mut waits).await.err();
            // If one group cannot be waited for, the others are only looked at.
            let until = failed.as_ref().map_or(deadline, |_| Instant::now());
            let Ok(ended) = timeout_at(until, ended(&mut waits)).await else {
                return failed.map_or(Ok(Vec::new()), Err);
            };
            let mut news = Vec::new();
            for (readers, answer) in ended {
                match answer {
                    Ok(reply) => news.extend(self.logs(request, reply, readers.reads.address())?),
                    Err(error) => failed = Some(request.servers.waited_in_vain(&readers, error)),
                }
            }
            if !news.is_empty() {
                return Ok(news);
            }
            if let Some(failed) = failed {
                return Err(failed);
            }
        }
    }

    /// Begins to wait for the groups that are not waited for; says why some could not be.
    async fn begin(
        &self,
        request: &Request<'_>,
        groups: &Groups,
        waits: &mut Waits,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for (group, cursors) in groups {
            if waits.contains_key(group) {
                continue;
            }
            let slot = request.slot(cursors);
            match request.servers.readers(*group, slot).await {
                Ok(readers) => {
                    let block = BLOCK * groups.len() as u32;
                    waits.insert(*group, self.xread(request, cursors, readers, block));
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    fn xread(
        &self,
        request: &Request<'_>,
        cursors: &[LogCursor],
        readers: Pair,
        block: Duration,
    ) -> Wait {
        let asked = self.entries.load(Ordering::Relaxed);
        let count = self.count(cursors.len(), request.limit);
        let (keys, ids) = request.keys_and_ids(cursors);
        let (limit, entries) = (block + request.timeout, self.entries.clone());
        let (link, block) = (readers.reads.clone(), block.as_millis() as u64);
        let answer = async move {
            let begun = Instant::now();
            let xread = |client: Client| async move {
                client.xread(Some(count), Some(block), keys, ids).await
            };
            let reply = link.call(limit, IfDropped::Close, xread).await;
            // A reply may be too large for the time-out: ask for less next time, until it fits.
            let next = match reply {
                Err(_) if begun.elapsed() >= limit => (asked / 2).max(1),
                _ => (asked * 2).min(READ_ENTRIES),
            };
            entries.store(next, Ordering::Relaxed);
            reply
        };
        Wait {
            cursors: cursors.to_vec(),
            limit: request.limit,
            given_up: readers.commands.given_up(),
            readers,
            answer: answer.boxed(),
        }
    }

    /// How many entries of each of so many logs to ask for.
    fn count(&self, logs: usize, limit: usize) -> u64 {
        let asked = self.entries.load(Ordering::Relaxed);
        limit.min((asked / logs.max(1)).max(1)) as u64
    }

    fn logs(
        &self,
        request: &Request<'_>,
        reply: Value,
        address: &str,
    ) -> Result<Vec<LogRead>, StoreError> {
        let logs = reply::logs(reply, request.keys);
        logs.map_err(|_| unavailable(address, "the answer to XREAD makes no sense"))
    }
}

/// Waits until at least one of `waits` has ended; takes those out that have.
async fn ended(waits: &mut Waits) -> Vec<(Pair, Result<Value, Failed>)> {
    poll_fn(|context| {
        let mut ended = Vec::new();
        waits.retain(|_, wait| match wait.answer.poll_unpin(context) {
            Poll::Pending => true,
            Poll::Ready(answer) => {
                ended.push((wait.readers.clone(), answer));
                false
            }
        });
        match ended.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(ended),
        }
    })
    .await
}

/// The greatest stream ID of sequence number `sequence`.
fn after(sequence: u64) -> XID {
    XID::Manual(format!("{sequence}-{}", u64::MAX).into())
}
