//! One connection to the node: many requests in flight, answers in any order.
//!
//! A caller writes its frame itself, whole or not at all, so that a dropped call never leaves half
//! a frame; what the socket does not take at once is written by a task. Another task reads the
//! answers. Knows nothing of what requests mean, but for the tickets that answers give.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::{CacheError, RemovalFeed, Removed, Ticket};
use rustix::net::Shutdown;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::lock::Lock;
use crate::stream::{Frames, write_now};
use crate::wire::{Refused, Reply, Request};

/// Permits of the requests in flight; one for each, and one more for every [`PERMIT_BYTES`].
const PERMITS: usize = 4096;
/// So that requests in flight hold 64 MiB at most.
const PERMIT_BYTES: usize = 16 << 10;
/// More than callers with permits can leave: dropped calls piled up, and the node does not read.
const MOST_BACKLOG: usize = 128 << 20;
/// A load whose end is farther away is not distinguished from one without end.
const LONGEST_LOAD: Duration = Duration::from_secs(24 * 3600);

/// The connection, shared by its callers and its two tasks.
pub(super) struct Connection {
    socket: OwnedWriteHalf,
    calls: Lock<Calls>,
    /// Frames, or the rest of one, that the socket did not take at once.
    backlog: Lock<VecDeque<u8>>,
    backlogged: Notify,
    permits: Semaphore,
    removals: RemovalFeed,
}

#[derive(Default)]
struct Calls {
    last_id: u32,
    waiting: HashMap<u32, oneshot::Sender<Reply>>,
    /// When running loads end at the latest.
    loads: HashMap<Ticket, Instant>,
    /// Why the session is over, once it is.
    gone: Option<String>,
}

impl Connection {
    /// Takes over a greeted stream.
    pub(super) fn start(stream: UnixStream, frames: Frames) -> Arc<Self> {
        let (read, socket) = stream.into_split();
        let connection = Arc::new(Self {
            socket,
            calls: Lock::default(),
            backlog: Lock::default(),
            backlogged: Notify::new(),
            permits: Semaphore::new(PERMITS),
            removals: RemovalFeed::default(),
        });
        let reading = Reading(connection.clone());
        tokio::spawn(read_answers(reading, read, frames));
        tokio::spawn(write_backlog(connection.clone()));
        connection
    }

    pub(super) fn is_open(&self) -> bool {
        self.calls.lock().gone.is_none()
    }

    /// What the node tells of blocks it no longer holds.
    pub(super) fn removals(&self) -> &RemovalFeed {
        &self.removals
    }

    /// Ends the session; the first reason given stands.
    pub(super) fn close(&self, reason: &str) {
        {
            let mut calls = self.calls.lock();
            if calls.gone.is_some() {
                return;
            }
            calls.gone = Some(reason.to_owned());
            calls.waiting.clear();
        }
        self.permits.close();
        self.backlogged.notify_one();
        if let Err(error) = rustix::net::shutdown(self.socket.as_ref(), Shutdown::Both) {
            tracing::debug!(%error, "the connection was closed already");
        }
    }

    /// Ends the session because the node does not keep to the protocol.
    pub(super) fn broken(&self, reason: String) -> CacheError {
        tracing::warn!(reason, "session with the cache node ended");
        self.close(&reason);
        self.gone()
    }

    fn gone(&self) -> CacheError {
        let reason = self.calls.lock().gone.clone();
        CacheError::Gone {
            reason: reason.unwrap_or_else(|| "the session ended".to_owned()),
        }
    }

    /// Sends a request and waits for its answer; a node that takes longer is gone.
    pub(super) async fn ask(
        &self,
        request: &Request<'_>,
        within: Duration,
    ) -> Result<Reply, CacheError> {
        match timeout(within, self.exchange(request)).await {
            Ok(reply) => reply,
            Err(_) => Err(self.broken(format!(
                "the node did not answer {} within {} ms",
                request.name(),
                within.as_millis()
            ))),
        }
    }

    async fn exchange(&self, request: &Request<'_>) -> Result<Reply, CacheError> {
        let mut frame = Vec::new();
        let mut answer = self.register().ok_or_else(|| self.gone())?;
        request.encode(answer.id, &mut frame);
        let weight = (1 + frame.len() / PERMIT_BYTES).min(PERMITS) as u32;
        let permit = self.permits.acquire_many(weight).await;
        let _permit = permit.map_err(|_| self.gone())?;
        self.send(&frame)?;
        (&mut answer.reply).await.map_err(|_| self.gone())
    }

    /// Opens a place for an answer, unless the session is over.
    fn register(&self) -> Option<Answer<'_>> {
        let (sender, reply) = oneshot::channel();
        let mut calls = self.calls.lock();
        if calls.gone.is_some() {
            return None;
        }
        let id = loop {
            calls.last_id = calls.last_id.wrapping_add(1).max(1);
            if !calls.waiting.contains_key(&calls.last_id) {
                break calls.last_id;
            }
        };
        calls.waiting.insert(id, sender);
        Some(Answer {
            connection: self,
            id,
            reply,
        })
    }

    /// Writes a frame, or leaves to the task what the socket does not take now.
    fn send(&self, frame: &[u8]) -> Result<(), CacheError> {
        let mut backlog = self.backlog.lock();
        let written = if backlog.is_empty() {
            write_now(&self.socket, frame)
        } else {
            Ok(0)
        };
        match written {
            Ok(count) if count == frame.len() => Ok(()),
            Ok(count) if backlog.len() + frame.len() <= MOST_BACKLOG => {
                backlog.extend(&frame[count..]);
                self.backlogged.notify_one();
                Ok(())
            }
            Ok(_) => Err(self.broken("the node does not read its requests".to_owned())),
            Err(error) => Err(self.broken(format!("writing to the node failed: {error}"))),
        }
    }

    /// Gives back a ticket that nobody waits for any more.
    fn release_unclaimed(&self, reply: &Reply) {
        if let Some(ticket) = reply.given() {
            let mut frame = Vec::new();
            Request::Release { ticket }.encode(0, &mut frame);
            if self.send(&frame).is_err() {
                tracing::debug!(?ticket, "the node takes the ticket back by itself");
            }
        }
    }

    /// Hands an answer to its caller, and news to whoever watches.
    fn deliver(&self, id: u32, reply: Reply) {
        let reply = match reply {
            Reply::Removed(Removed { keys, lost }) => {
                self.removals.removed(keys.iter().copied());
                self.removals.lost(lost);
                return;
            }
            reply => reply,
        };
        let caller = self.calls.lock().waiting.remove(&id);
        let unclaimed = match caller {
            Some(caller) => caller.send(reply).err(),
            None => Some(reply),
        };
        if let Some(reply) = unclaimed {
            self.release_unclaimed(&reply);
        }
    }

    /// Notes how long a load may take.
    pub(super) fn expect_load(&self, ticket: Ticket, deadline: Duration) {
        let end = Instant::now() + deadline.min(LONGEST_LOAD);
        self.calls.lock().loads.insert(ticket, end);
    }

    /// How long the ticket's load may still take.
    pub(super) fn load_takes(&self, ticket: Ticket) -> Duration {
        let end = self.calls.lock().loads.get(&ticket).copied();
        end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }

    pub(super) fn forget_load(&self, ticket: Ticket) {
        self.calls.lock().loads.remove(&ticket);
    }
}

/// A place for one answer. Dropping it gives back what the answer may still bring.
struct Answer<'a> {
    connection: &'a Connection,
    id: u32,
    reply: oneshot::Receiver<Reply>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.connection.calls.lock().waiting.remove(&self.id);
        self.reply.close();
        if let Ok(reply) = self.reply.try_recv() {
            self.connection.release_unclaimed(&reply);
        }
    }
}

/// Ends the session when the reading task ends, even if that is because its runtime does.
struct Reading(Arc<Connection>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.close("the runtime that attached has ended");
    }
}

/// Reads answers until the session ends.
async fn read_answers(reading: Reading, mut read: OwnedReadHalf, mut frames: Frames) {
    let connection = &reading.0;
    let reason = loop {
        match frames.next(&mut read).await {
            Ok(Some((header, body))) if header.kind == Refused::KIND => {
                break match Refused::decode(body) {
                    Ok(refused) => refused.text,
                    Err(error) => format!("the node sent a malformed frame: {error}"),
                };
            }
            Ok(Some((header, body))) => match Reply::decode(header.kind, body) {
                Ok(reply) => connection.deliver(header.id, reply),
                Err(error) => break format!("the node sent a malformed frame: {error}"),
            },
            Ok(None) => break "the node closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    if connection.is_open() {
        tracing::warn!(reason, "session with the cache node ended");
    }
    connection.close(&reason);
}

/// Writes what callers left, whenever the socket takes more.
async fn write_backlog(connection: Arc<Connection>) {
    while connection.is_open() {
        connection.backlogged.notified().await;
        if let Err(error) = drain_backlog(&connection).await {
            connection.close(&format!("writing to the node failed: {error}"));
        }
    }
}

async fn drain_backlog(connection: &Connection) -> std::io::Result<()> {
    while connection.is_open() {
        connection.socket.writable().await?;
        let mut backlog = connection.backlog.lock();
        let count = write_now(&connection.socket, backlog.as_slices().0)?;
        backlog.drain(..count);
        if backlog.is_empty() {
            *backlog = VecDeque::new();
            return Ok(());
        }
    }
    Ok(())
}
