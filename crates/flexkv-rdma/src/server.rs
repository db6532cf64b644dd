//! The owner's half: tells readers that prove themselves where the arena lies, and connects a queue
//! pair for each; then the device answers them, and nothing here runs.
//!
//! Knows nothing of what readers read.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use flexkv_handshake::{Credential, Refusals};
use flexkv_ports::SuspectSender;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::address::show;
use crate::arena::RdmaArena;
use crate::board::Board;
use crate::greeting::{GreetingError, answer, hear, heed, terms};
use crate::nic::{NicError, Pair, Path, QueueAddress, Rights};
use crate::peer::first_packet;
use crate::wire::{Introduction, encode_answer};

/// Pause after a connection could not be accepted, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond the bound that are let in only to be told why they are refused.
const REFUSALS: usize = 8;
/// Work requests of an owner's queue pair: it posts none, but none may be asked for.
const DEPTH: u32 = 1;

/// How an owner serves.
#[derive(Clone, Debug)]
pub struct RdmaServerConfig {
    /// What it proves itself with.
    pub credential: Credential,
    /// Readers at a time; further ones are refused.
    pub max_readers: usize,
    /// The longest that a greeting may take.
    pub greeting_time: Duration,
    /// Counts refusals.
    pub refusals: Refusals,
    /// Where readers' reports of damaged blocks go, if anyone looks at them.
    pub suspects: Option<SuspectSender>,
}

impl RdmaServerConfig {
    /// The defaults, with this credential.
    pub fn new(credential: Credential) -> Self {
        Self {
            credential,
            max_readers: 64,
            greeting_time: Duration::from_secs(5),
            refusals: Refusals::default(),
            suspects: None,
        }
    }
}

/// Why a reader that was let in is not served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error(transparent)]
    Nic(#[from] NicError),
}

/// An arena that readers of other hosts can read until this is dropped.
#[derive(Debug)]
pub struct RdmaServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    arena: Arc<RdmaArena>,
    config: RdmaServerConfig,
    readers: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

impl RdmaServer {
    /// Serves `arena` to readers that greet at `address`. Runs on the current runtime.
    pub fn start(
        address: SocketAddr,
        arena: Arc<RdmaArena>,
        config: RdmaServerConfig,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            arena,
            readers: Arc::new(Semaphore::new(config.max_readers)),
            refused: Arc::new(Semaphore::new(REFUSALS)),
            config,
        });
        let accepting = tokio::spawn(accept_all(shared.clone(), listener));
        Ok(Self {
            address,
            shared,
            accepting: accepting.abort_handle(),
        })
    }

    /// Where readers greet it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as an endpoint, such as `rdma://10.0.0.1:7001`.
    pub fn endpoint(&self) -> String {
        show(self.address)
    }

    /// Readers that are connected now.
    pub fn readers(&self) -> usize {
        self.shared.config.max_readers - self.shared.readers.available_permits()
    }
}

impl Drop for RdmaServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts for as long as the task is not aborted, which ends all connections too.
async fn accept_all(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let admitted = shared.readers.clone().try_acquire_owned().ok();
                let refused = match admitted {
                    Some(_) => None,
                    None => shared.refused.clone().try_acquire_owned().ok(),
                };
                // Beyond both bounds the connection is just closed.
                if admitted.is_some() || refused.is_some() {
                    connections.spawn(serve(shared.clone(), stream, from, admitted, refused));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a reader");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    from: SocketAddr,
    admitted: Option<OwnedSemaphorePermit>,
    _refused: Option<OwnedSemaphorePermit>,
) {
    let greeting = connect(&shared, &mut stream, admitted.is_some());
    match timeout(shared.config.greeting_time, greeting).await {
        Ok(Ok((reader, pair))) => {
            tracing::debug!(reader, %from, "reads the arena");
            heed(&mut stream, shared.config.suspects.as_ref()).await;
            drop(pair);
        }
        Ok(Err(error)) => tracing::debug!(%from, %error, "a reader was turned away"),
        Err(_) => tracing::debug!(%from, "a reader did not finish its greeting"),
    }
}

/// Greets, and connects a queue pair that may read the arena; gives the reader's name with it.
async fn connect(
    shared: &Shared,
    stream: &mut TcpStream,
    admitted: bool,
) -> Result<(String, Box<dyn Pair>), ServeError> {
    let (arena, config) = (&shared.arena, &shared.config);
    let (layout, nic) = (arena.layout(), arena.nic());
    stream.set_nodelay(true).map_err(GreetingError::from)?;
    let most = config.max_readers;
    let full = (!admitted).then(|| format!("all {most} places for readers are taken"));
    let terms = terms(layout.namespace(), layout.block_bytes());
    let credential = &config.credential;
    let reader = answer(stream, credential, terms, full, &config.refusals).await?;
    let theirs = hear(stream).await?;
    let pair = nic.pair(DEPTH, Weak::<Board>::new())?;
    let ours = QueueAddress {
        port: nic.address(),
        number: pair.number(),
        first_packet: first_packet(),
    };
    let reads = theirs.reads.min(nic.limits().reads);
    if theirs.queue.port.link == ours.port.link {
        pair.connect(&Path {
            ours,
            theirs: theirs.queue,
            reads,
            theirs_may: Rights::Read,
        })?;
    }
    let introduction = Introduction { queue: ours, reads };
    let answer = encode_answer(&introduction, layout, &arena.table());
    let sent = tokio::io::AsyncWriteExt::write_all(stream, &answer).await;
    sent.map_err(GreetingError::from)?;
    Ok((reader, pair))
}
