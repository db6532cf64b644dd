//! A reader's link to one owner: the mapped arena, for as long as the owner's process lives.
//!
//! An owner that cannot be attached to is left alone for a time that doubles with every failure.
//! Knows nothing of what is read.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flexkv_handshake::{Asking, GreetError, VERDICT_BYTES, WELCOME_BYTES};
use flexkv_ports::Suspect;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, timeout};

use super::address::Address;
use super::asks::{Asks, Held};
use super::server::terms;
use super::socket;
use super::transport::HostTransportConfig;
use super::wire::{self, Named};
use crate::{HostError, MappedArena};

/// Why an arena is not mapped.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    #[error("the arena is not the one greeted for")]
    Another,
    #[error(transparent)]
    Arena(#[from] HostError),
    #[error(transparent)]
    Greet(#[from] GreetError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the owner sent no file")]
    NoFile,
}

/// One owner.
pub(super) struct Link {
    address: Address,
    config: HostTransportConfig,
    /// Held by the one who attaches.
    attaching: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attached: Option<Attached>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Why the last attempt failed.
    reason: Option<String>,
}

struct Attached {
    arena: Arc<MappedArena>,
    asks: Arc<Asks>,
    /// The task that talks to the owner until its end.
    talk: AbortHandle,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.talk.abort();
        self.asks.close();
    }
}

impl Link {
    pub(super) fn new(address: Address, config: HostTransportConfig) -> Arc<Self> {
        Arc::new(Self {
            address,
            config,
            attaching: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// The owner's arena, if it is mapped.
    pub(super) fn arena(&self) -> Option<Arc<MappedArena>> {
        let state = self.lock();
        state
            .attached
            .as_ref()
            .map(|attached| attached.arena.clone())
    }

    /// Why the owner could not be attached to at the last attempt, if it failed.
    pub(super) fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// The owner's arena, mapped by `until` at the latest; none if the owner is left alone for now.
    /// An attempt goes on if the caller gives up sooner.
    pub(super) async fn attached(self: &Arc<Self>, until: Instant) -> Option<Arc<MappedArena>> {
        if let Some(arena) = self.arena() {
            return Some(arena);
        }
        if self.is_left_alone() {
            return None;
        }
        let attempt = tokio::spawn(self.clone().attach());
        let arena = tokio::time::timeout_at(until, attempt).await.ok()?;
        arena.ok().flatten()
    }

    async fn attach(self: Arc<Self>) -> Option<Arc<MappedArena>> {
        let _turn = self.attaching.lock().await;
        if let Some(arena) = self.arena() {
            return Some(arena);
        }
        if self.is_left_alone() {
            return None;
        }
        let time = self.config.open_time;
        let opened = match timeout(time, self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(LinkError::Late(time)),
        };
        match opened {
            Ok((arena, stream)) => Some(self.keep(arena, stream)),
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Greets the owner and maps what it sends.
    async fn open(&self) -> Result<(MappedArena, UnixStream), LinkError> {
        let config = &self.config;
        let stream = UnixStream::connect(self.address.socket()).await?;
        let terms = terms(config.namespace, config.block_bytes);
        let (asking, opening) = Asking::begin(&config.credential, terms)?;
        socket::send(&stream, &opening, None).await?;
        let (welcome, _) = socket::receive::<WELCOME_BYTES>(&stream).await?;
        let mut rest = vec![0; asking.follows(&welcome)?];
        socket::fill(&stream, &mut rest).await?;
        let (proving, confirm) = asking.confirm(&welcome, &rest)?;
        socket::send(&stream, &confirm, None).await?;
        let (verdict, file) = socket::receive::<VERDICT_BYTES>(&stream).await?;
        proving.accepted(&verdict)?;
        let arena = MappedArena::open(file.ok_or(LinkError::NoFile)?)?;
        let layout = arena.layout();
        let expected = (self.address.arena, config.namespace, config.block_bytes);
        if (layout.arena(), layout.namespace(), layout.block_bytes()) != expected {
            return Err(LinkError::Another);
        }
        Ok((arena, stream))
    }

    fn keep(self: &Arc<Self>, arena: MappedArena, stream: UnixStream) -> Arc<MappedArena> {
        let arena = Arc::new(arena);
        let (asks, to_send) = Asks::new();
        let talk = talk(Arc::downgrade(self), stream, asks.clone(), to_send);
        let talk = tokio::spawn(talk).abort_handle();
        let mut state = self.lock();
        *state = State {
            attached: Some(Attached {
                arena: arena.clone(),
                asks,
                talk,
            }),
            ..State::default()
        };
        drop(state);
        let populated = arena.clone();
        spawn_blocking(move || {
            if let Err(error) = populated.populate() {
                tracing::debug!(%error, "the first fetches will fault pages in");
            }
        });
        arena
    }

    fn failed(&self, error: &LinkError) {
        let mut state = self.lock();
        let doubled = 1u32.checked_shl(state.failures).unwrap_or(u32::MAX);
        let pause = self.config.first_pause.saturating_mul(doubled);
        state.failures = state.failures.saturating_add(1);
        state.retry_at = Some(Instant::now() + pause.min(self.config.longest_pause));
        let reason = error.to_string();
        if state.reason.as_ref() != Some(&reason) {
            tracing::info!(owner = %self.address, reason, "the arena cannot be shared");
            state.reason = Some(reason);
        }
    }

    /// Tells the owner of a damaged block, if it is attached and has not too much to hear.
    pub(super) fn report(&self, suspect: Suspect) {
        let asks = self.asks();
        if asks.is_some_and(|asks| !asks.report(suspect)) {
            tracing::debug!(owner = %self.address, "a report is lost");
        }
    }

    /// Has the owner bring blocks to memory and hold them there. `None` if it does not answer by
    /// `until`.
    pub(super) async fn hold(&self, blocks: &[Named], until: Instant) -> Option<Held> {
        self.asks()?.hold(blocks, until).await
    }

    fn asks(&self) -> Option<Arc<Asks>> {
        let state = self.lock();
        state
            .attached
            .as_ref()
            .map(|attached| attached.asks.clone())
    }

    /// Lets go of the arena: the owner has gone. A new attempt may be made at once.
    fn lost(&self) {
        let lost = self.lock().attached.take();
        drop(lost);
    }

    fn is_left_alone(&self) -> bool {
        let retry_at = self.lock().retry_at;
        retry_at.is_some_and(|at| at > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what is said on either side, until the owner's end. Until then its memory stays mapped;
/// afterwards that would keep memory from the system that nobody fills any more.
async fn talk(
    link: Weak<Link>,
    stream: UnixStream,
    asks: Arc<Asks>,
    mut to_send: mpsc::Receiver<Vec<u8>>,
) {
    let ended = tokio::select! {
        heard = hear(&stream, &asks) => heard,
        sent = socket::send_all(&stream, &mut to_send) => sent,
    };
    if let Some(link) = link.upgrade() {
        tracing::debug!(owner = %link.address, ?ended, "the owner of a shared arena has gone");
        link.lost();
    }
}

/// Hears the owner's answers, until it leaves or says something else.
async fn hear(stream: &UnixStream, asks: &Asks) -> io::Result<()> {
    loop {
        let (head, _) = socket::receive::<{ wire::ANSWER_BYTES }>(stream).await?;
        let Some((id, count)) = wire::answered(&head) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut words = vec![0; wire::WORD_BYTES * count];
        socket::fill(stream, &mut words).await?;
        asks.answered(id, wire::held(&words));
    }
}
