//! One engine's session: greets, serves requests in order of arrival, and takes back every ticket
//! when the connection ends, however it ends.
//!
//! Waiting for a load is the one request that runs beside the others. Knows nothing of what a
//! ticket stands for.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, LoadStatus, Loaded, MemorySlice, Removals, StoreGrant, Ticket};
use rustix::net::{SendFlags, Shutdown};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Service;
use crate::lock::Lock;
use crate::stream::{Frames, StreamError, send_with_file, write_now};
use crate::wire::{
    Hello, MAX_ITEMS, PlacedBlock, RefusalCode, Refused, Reply, Request, VERSION, WireError,
};

/// For a frame that the socket must take at once or not at all.
pub(super) const NO_WAIT: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Removals within this time are told together.
const REMOVALS_EVERY: Duration = Duration::from_millis(10);

/// Bytes of a request beside its list.
const FIXED_BYTES: usize = 64;

/// Tickets that the session holds.
type Held = Arc<Lock<HashSet<Ticket>>>;

/// Why a session ended before its engine left.
#[derive(Debug, Error)]
enum SessionError {
    #[error("it did not greet within {0:?}")]
    Silent(Duration),
    #[error("it speaks version {0} of the local protocol, this node version {VERSION}")]
    Version(u16),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("it does not take its answers: {0}")]
    Answer(#[from] io::Error),
    #[error("the node shuts down")]
    Closing,
}

impl SessionError {
    /// What to tell the engine, if it can still be told.
    fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Silent(_) | Self::Stream(StreamError::Wire(_)) => Some(RefusalCode::Protocol),
            Self::Version(_) => Some(RefusalCode::Version),
            Self::Closing => Some(RefusalCode::Closing),
            Self::Stream(StreamError::Io(_) | StreamError::Cut) | Self::Answer(_) => None,
        }
    }
}

impl From<WireError> for SessionError {
    fn from(error: WireError) -> Self {
        Self::Stream(error.into())
    }
}

/// Serves one connection to its end; `place` is held until its last ticket is released.
pub(super) async fn run(service: Arc<Service>, stream: UnixStream, place: OwnedSemaphorePermit) {
    let held = Held::default();
    let mut serving = tokio::spawn(serve(service.clone(), stream, held.clone()));
    let result = tokio::select! {
        result = &mut serving => result,
        () = overdue(&service) => {
            serving.abort();
            (&mut serving).await
        }
    };
    match result {
        Ok(()) => {}
        Err(error) if error.is_cancelled() => tracing::warn!("an engine's session was cut off"),
        Err(error) => tracing::error!(%error, "an engine's session panicked"),
    }
    release_all(&service, &held).await;
    drop(place);
}

/// Returns when the node has been shutting down for as long as a session may take.
async fn overdue(service: &Service) {
    let mut closing = service.closing.clone();
    // An error means that the server was dropped, which is a shutdown too.
    let _ = closing.wait_for(|closing| *closing).await;
    tokio::time::sleep(service.config.shutdown_within).await;
}

async fn release_all(service: &Service, held: &Held) {
    let tickets = std::mem::take(&mut *held.lock());
    if tickets.is_empty() {
        return;
    }
    tracing::debug!(
        tickets = tickets.len(),
        "released what an engine still held"
    );
    for ticket in tickets {
        if let Err(error) = service.cache.release(ticket).await {
            tracing::debug!(?ticket, %error, "a ticket was not released");
        }
    }
}

/// Greets and serves; says why, if the node ends the session.
async fn serve(service: Arc<Service>, stream: UnixStream, held: Held) {
    let limit = BlockKey::BYTES * service.config.max_keys + FIXED_BYTES;
    let mut frames = Frames::new(limit);
    let mut closing = service.closing.clone();
    let hello = match greet(&service, &stream, &mut frames).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return,
        Err(error) => return farewell(&stream, &error),
    };
    tracing::info!(pid = hello.pid, "engine attached");
    let (mut read, write) = stream.into_split();
    let mut session = Session {
        answers: Arc::new(Answers {
            socket: Mutex::new(write),
            service: service.clone(),
        }),
        waits: JoinSet::new(),
        watch: JoinSet::new(),
        service,
        held,
    };
    let ended = loop {
        let next = tokio::select! {
            next = frames.next(&mut read) => next,
            _ = closing.wait_for(|closing| *closing) => break Err(SessionError::Closing),
        };
        let served = match next {
            Ok(None) => break Ok(()),
            Ok(Some((header, body))) => match Request::decode(header.kind, body) {
                Ok(request) => session.serve(header.id, request).await.map_err(Into::into),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            break Err(error);
        }
    };
    match ended {
        Ok(()) => tracing::info!(pid = hello.pid, "engine detached"),
        Err(error) => {
            tracing::warn!(pid = hello.pid, %error, "an engine's session ended");
            farewell(read.as_ref(), &error);
        }
    }
    // Before the tickets are released, so that no engine takes itself for attached meanwhile.
    shut(read.as_ref());
}

/// Tells the engine why its session ends, if the socket takes it at once.
fn farewell(stream: &UnixStream, error: &SessionError) {
    if let Some(code) = error.refusal() {
        let mut frame = Vec::new();
        let text = error.to_string();
        Refused { code, text }.encode(&mut frame);
        if let Err(error) = rustix::net::send(stream, &frame, NO_WAIT) {
            tracing::debug!(%error, "an engine left without a farewell");
        }
    }
}

/// Reads the engine's greeting and answers it; `None` if it left before.
async fn greet(
    service: &Service,
    stream: &UnixStream,
    frames: &mut Frames,
) -> Result<Option<Hello>, SessionError> {
    let within = service.config.greeting_within;
    let mut files = Vec::new();
    let first = timeout(within, frames.next_with_files(stream, &mut files));
    let first = first.await.map_err(|_| SessionError::Silent(within))?;
    let Some((header, body)) = first? else {
        return Ok(None);
    };
    let hello = Hello::decode(header.kind, body)?;
    if hello.version != VERSION {
        return Err(SessionError::Version(hello.version));
    }
    let mut welcome = Vec::new();
    service.welcome.encode(&mut welcome);
    let file = std::os::fd::AsFd::as_fd(&service.arena_file);
    timeout(within, send_with_file(stream, &welcome, file))
        .await
        .map_err(|_| SessionError::Silent(within))??;
    Ok(Some(hello))
}

/// The way back to the engine, for the session and its waits.
struct Answers {
    socket: Mutex<OwnedWriteHalf>,
    service: Arc<Service>,
}

impl Answers {
    /// Sends a reply. If the engine does not take it, the session is over, since nothing can
    /// follow half a frame.
    async fn send(&self, id: u32, reply: &Reply) -> io::Result<()> {
        let mut frame = Vec::new();
        reply.encode(id, &mut frame);
        let socket = self.socket.lock().await;
        let sent = self.write(&socket, &frame).await;
        if sent.is_err() {
            shut(socket.as_ref());
        }
        sent
    }

    async fn write(&self, socket: &OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
        let mut written = write_now(socket, frame)?;
        while written < frame.len() {
            timeout(self.service.config.answer_within, socket.writable()).await??;
            written += write_now(socket, &frame[written..])?;
        }
        Ok(())
    }
}

/// Ends a connection in both directions, for both halves of it.
fn shut(stream: &UnixStream) {
    if let Err(error) = rustix::net::shutdown(stream, Shutdown::Both) {
        tracing::debug!(%error, "the connection was closed already");
    }
}

struct Session {
    service: Arc<Service>,
    held: Held,
    answers: Arc<Answers>,
    waits: JoinSet<()>,
    /// The one task that tells of removals, if the engine asked for it.
    watch: JoinSet<()>,
}

impl Session {
    /// Serves one request. An error means that the engine cannot be answered.
    async fn serve(&mut self, id: u32, request: Request<'_>) -> io::Result<()> {
        while self.waits.try_join_next().is_some() {}
        match self.call(id, request).await {
            Ok(None) => Ok(()),
            Ok(Some(reply)) => self.answers.send(id, &reply).await,
            Err(error) => self.answers.send(id, &Reply::Failed(error)).await,
        }
    }

    /// Makes the call; no reply means that one will follow.
    async fn call(&mut self, id: u32, request: Request<'_>) -> Result<Option<Reply>, CacheError> {
        let cache = self.service.cache.clone();
        let reply = match request {
            Request::Match { keys } => {
                self.check(keys.len())?;
                let hit = cache.match_prefix(&keys).await?;
                self.held.lock().insert(hit.ticket);
                Reply::Matched(hit)
            }
            Request::Store { keys, first } => {
                self.check(keys.len())?;
                let grant = cache.store(&keys, first as usize).await?;
                self.held.lock().insert(grant.ticket);
                self.service.place_grant(grant)?
            }
            Request::Load {
                ticket,
                blocks,
                limits,
            } => {
                self.owned(ticket)?;
                cache.load(ticket, blocks as usize, limits).await?;
                Reply::Done
            }
            Request::Poll { ticket } => {
                self.owned(ticket)?;
                match cache.poll(ticket).await? {
                    LoadStatus::Pending => Reply::Pending,
                    LoadStatus::Ready(loaded) => self.service.place_loaded(loaded)?,
                }
            }
            Request::Wait { ticket } => {
                self.start_wait(id, ticket)?;
                return Ok(None);
            }
            Request::Commit { ticket, filled } => {
                self.owned(ticket)?;
                cache.commit(ticket, &filled).await?;
                Reply::Done
            }
            Request::Watch => {
                if self.watch.is_empty() {
                    let removals = cache.removals().await?;
                    self.watch.spawn(tell(removals, self.answers.clone()));
                }
                Reply::Done
            }
            Request::Release { ticket } => {
                self.owned(ticket)?;
                let released = cache.release(ticket).await;
                self.held.lock().remove(&ticket);
                released?;
                Reply::Done
            }
        };
        Ok(Some(reply))
    }

    /// Answers a `Wait` when its load ends, beside the requests that follow.
    fn start_wait(&mut self, id: u32, ticket: Ticket) -> Result<(), CacheError> {
        self.owned(ticket)?;
        if self.waits.len() >= self.service.config.max_waits {
            return Err(CacheError::Invalid {
                reason: format!("this engine waits for {} loads already", self.waits.len()),
            });
        }
        let service = self.service.clone();
        let answers = self.answers.clone();
        self.waits.spawn(async move {
            let loaded = service.cache.wait(ticket).await;
            let reply = loaded.and_then(|loaded| service.place_loaded(loaded));
            let reply = reply.unwrap_or_else(Reply::Failed);
            if let Err(error) = answers.send(id, &reply).await {
                tracing::debug!(%error, "an engine left before its load was done");
            }
        });
        Ok(())
    }

    /// Refuses what is over the session's bounds.
    fn check(&self, keys: usize) -> Result<(), CacheError> {
        let config = &self.service.config;
        let tickets = self.held.lock().len();
        let reason = if keys > config.max_keys {
            format!("{keys} keys are over the limit of {}", config.max_keys)
        } else if tickets >= config.max_tickets {
            format!("this engine holds {tickets} tickets, the most a session may; release some")
        } else {
            return Ok(());
        };
        Err(CacheError::Invalid { reason })
    }

    /// A session has no business with tickets of others.
    fn owned(&self, ticket: Ticket) -> Result<(), CacheError> {
        if self.held.lock().contains(&ticket) {
            Ok(())
        } else {
            Err(CacheError::UnknownTicket { ticket })
        }
    }
}

/// Tells of removals for as long as the engine takes it.
async fn tell(removals: Removals, answers: Arc<Answers>) {
    loop {
        let removed = removals.next().await;
        if let Err(error) = answers.send(0, &Reply::Removed(removed)).await {
            tracing::debug!(%error, "an engine left before it heard of removals");
            return;
        }
        tokio::time::sleep(REMOVALS_EVERY).await;
    }
}

impl Service {
    /// Where in the arena a block lies.
    fn offset(&self, block: &MemorySlice) -> Result<u64, CacheError> {
        let inside = block.memory().base() == self.arena.base()
            && block.len() as u64 == self.welcome.block_bytes;
        if inside {
            return Ok(block.offset() as u64);
        }
        tracing::error!(
            ?block,
            "the cache handed out a block that is not in the arena"
        );
        Err(CacheError::Invalid {
            reason: "the node handed out a block that is not in its arena".to_owned(),
        })
    }

    fn place_loaded(&self, loaded: Loaded) -> Result<Reply, CacheError> {
        fits(loaded.blocks.len())?;
        let place = |block: &flexkv_ports::BlockView| {
            Ok(PlacedBlock {
                key: block.key,
                checksum: block.checksum,
                offset: self.offset(&block.bytes)?,
            })
        };
        Ok(Reply::Loaded {
            local: loaded.local,
            remote: loaded.remote,
            blocks: loaded.blocks.iter().map(place).collect::<Result<_, _>>()?,
        })
    }

    fn place_grant(&self, grant: StoreGrant) -> Result<Reply, CacheError> {
        fits(grant.slots.len())?;
        let place =
            |slot: &Option<MemorySlice>| slot.as_ref().map(|at| self.offset(at)).transpose();
        Ok(Reply::Granted {
            ticket: grant.ticket,
            slots: grant.slots.iter().map(place).collect::<Result<_, _>>()?,
        })
    }
}

/// No answer has more items than a frame may carry.
fn fits(items: usize) -> Result<(), CacheError> {
    if items <= MAX_ITEMS {
        return Ok(());
    }
    Err(CacheError::Invalid {
        reason: format!("an answer with {items} items is over the limit of {MAX_ITEMS}"),
    })
}
