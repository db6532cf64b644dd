//! A reader's link to one owner: greets it, connects a queue pair, and does so again when that has
//! failed.
//!
//! An owner that cannot be reached, or whose queue pair fails before anything was read, is left alone
//! for a time that doubles with every failure. Knows nothing of what is read.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_ports::Suspect;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::arena::RdmaArena;
use crate::board::Board;
use crate::counts::add;
use crate::greeting::{GreetingError, ask, ended, introduce, terms};
use crate::nic::{NicError, Path, QueueAddress, Rights};
use crate::queue::{Queue, Scratch};
use crate::transport::RdmaConfig;
use crate::wire::Introduction;

/// Why there is no connection.
#[derive(Debug, Error)]
enum PeerError {
    #[error("the owner's arena is not the one greeted for")]
    Another,
    #[error("the owner's port has another kind of link")]
    Link,
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error(transparent)]
    Nic(#[from] NicError),
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// One owner.
pub(crate) struct Peer {
    address: SocketAddr,
    arena: Arc<RdmaArena>,
    config: RdmaConfig,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connected: Option<Connected>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Why the last attempt, or the last connection, failed.
    reason: Option<String>,
}

/// A queue pair, and the connection that it was greeted over.
struct Connected {
    queue: Arc<Queue>,
    stream: Arc<TcpStream>,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, arena: Arc<RdmaArena>, config: RdmaConfig) -> Arc<Self> {
        Arc::new(Self {
            address,
            arena,
            config,
            connecting: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// Why there is no connection, or why the last one ended; `None` while all is well.
    pub(crate) fn reason(&self) -> Option<String> {
        let _ = self.queue();
        self.lock().reason.clone()
    }

    /// The connection, if there is one that works.
    pub(crate) fn queue(&self) -> Option<Arc<Queue>> {
        let mut state = self.lock();
        let queue = state.connected.as_ref()?.queue.clone();
        let Some((reason, proved)) = queue.board.failure() else {
            return Some(queue);
        };
        state.connected = None;
        if proved {
            state.reason = Some(reason);
        } else {
            self.failed(&mut state, reason);
        }
        None
    }

    /// A connection that works, made by `until` at the latest; none if the owner is left alone for
    /// now. An attempt goes on if the caller gives up sooner.
    pub(crate) async fn connected(self: &Arc<Self>, until: Instant) -> Option<Arc<Queue>> {
        if let Some(queue) = self.queue() {
            return Some(queue);
        }
        if self.is_left_alone() {
            return None;
        }
        let attempt = tokio::spawn(self.clone().connect());
        let queue = timeout_at(until, attempt).await.ok()?;
        queue.ok().flatten()
    }

    async fn connect(self: Arc<Self>) -> Option<Arc<Queue>> {
        let _turn = self.connecting.lock().await;
        if let Some(queue) = self.queue() {
            return Some(queue);
        }
        if self.is_left_alone() {
            return None;
        }
        let time = self.config.open_time;
        let opened = match timeout(time, self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(PeerError::Late(time)),
        };
        match opened {
            Ok((queue, stream)) => {
                let stream = Arc::new(stream);
                tokio::spawn(watch(queue.board.clone(), stream.clone()));
                let mut state = self.lock();
                state.connected = Some(Connected {
                    queue: queue.clone(),
                    stream,
                });
                state.retry_at = None;
                state.reason = None;
                Some(queue)
            }
            Err(error) => {
                self.failed(&mut self.lock(), error.to_string());
                None
            }
        }
    }

    /// Greets the owner, tells it of a queue pair, and connects that to the owner's.
    async fn open(&self) -> Result<(Arc<Queue>, TcpStream), PeerError> {
        let (arena, nic) = (&self.arena, self.arena.nic());
        let layout = arena.layout();
        let connected = TcpStream::connect(self.address).await;
        let mut stream = connected.map_err(GreetingError::from)?;
        stream.set_nodelay(true).map_err(GreetingError::from)?;
        let terms = terms(layout.namespace(), layout.block_bytes());
        ask(&mut stream, &self.config.credential, terms).await?;
        let (_, depth) = Queue::sizes(arena);
        let board = Board::open(&**nic, depth, arena.counters().clone())?;
        let ours = QueueAddress {
            port: nic.address(),
            number: board.pair().number(),
            first_packet: first_packet(),
        };
        let reads = nic.limits().reads;
        let introduction = Introduction { queue: ours, reads };
        let (theirs, owner) = introduce(&mut stream, &introduction).await?;
        let expected = (layout.namespace(), layout.block_bytes());
        if (owner.layout.namespace(), owner.layout.block_bytes()) != expected {
            return Err(PeerError::Another);
        }
        if theirs.queue.port.link != ours.port.link {
            return Err(PeerError::Link);
        }
        board.pair().connect(&Path {
            ours,
            theirs: theirs.queue,
            reads: theirs.reads.min(reads),
            theirs_may: Rights::Nothing,
        })?;
        add(&arena.counters().connections, 1);
        let scratch = Scratch::register(arena)?;
        Ok((Queue::new(board, owner, arena.clone(), scratch), stream))
    }

    /// Tells the owner of a damaged block, if it is connected and takes the report at once. Without
    /// room for a whole report the connection is of no more use.
    pub(crate) fn report(&self, suspect: Suspect) {
        let state = self.lock();
        let Some(Connected { queue, stream }) = &state.connected else {
            return;
        };
        let (queue, sent) = (queue.clone(), stream.try_write(&suspect.encode()));
        drop(state);
        match sent {
            Ok(Suspect::BYTES) => {}
            Ok(_) => queue.board.fail("a report was cut short"),
            Err(error) => tracing::debug!(%error, owner = %self.address, "a report is lost"),
        }
    }

    fn failed(&self, state: &mut State, reason: String) {
        let doubled = 1u32.checked_shl(state.failures).unwrap_or(u32::MAX);
        let pause = self.config.first_pause.saturating_mul(doubled);
        state.failures = state.failures.saturating_add(1);
        state.retry_at = Some(Instant::now() + pause.min(self.config.longest_pause));
        if state.reason.as_ref() != Some(&reason) {
            tracing::info!(owner = %self.address, reason, "the owner cannot be read");
            state.reason = Some(reason);
        }
    }

    /// Forgets earlier failures: something was read.
    pub(crate) fn works(&self) {
        self.lock().failures = 0;
    }

    fn is_left_alone(&self) -> bool {
        let retry_at = self.lock().retry_at;
        retry_at.is_some_and(|at| at > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chance, so that packets of an earlier queue pair of the same number are not taken for ours.
pub(crate) fn first_packet() -> u32 {
    fastrand::Rng::new().u32(..1 << 24)
}

/// Ends the queue pair when the owner goes, and the connection when the queue pair fails.
async fn watch(board: Arc<Board>, stream: Arc<TcpStream>) {
    tokio::select! {
        () = ended(&stream) => board.fail("the owner has gone"),
        () = board.ended() => {}
    }
}
