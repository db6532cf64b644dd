//! The owner's half: listens, and serves each connection on a thread of its own.
//!
//! Knows who is connected and how to end it; what a connection says is the session's affair.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use flexkv_block::{BlockLayout, NamespaceId};
use flexkv_handshake::{Credential, Refusals};
use flexkv_ports::{BlockTier, Stager, SuspectSender};

use crate::session::{Session, Source};
use crate::tls::Tls;
use crate::transport::scheme;

/// Connections beyond the bound that are let in only to be told why they are refused.
const REFUSALS: usize = 8;
/// Pause after a connection could not be accepted, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How an owner serves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The namespace of the tier's blocks; readers of another one are refused.
    pub namespace: NamespaceId,
    /// What the owner proves itself with; readers must know the same secret.
    pub credential: Credential,
    /// Certificates, if bytes are to pass through TLS.
    pub tls: Option<Tls>,
    /// The address that peers should use, if it is not the one listened at.
    pub advertise: Option<IpAddr>,
    /// Connections served at once; further ones are refused.
    pub max_connections: usize,
    /// Connections of one reader served at once, by the name it goes by.
    pub max_connections_per_reader: usize,
    /// Bytes of blocks that one request may ask for, if that is more than one block. They are
    /// pinned while the request is answered.
    pub max_request_bytes: usize,
    /// Bytes of blocks that all requests of one reader may ask for at the same time, if that is more than
    /// one block: so many are pinned for it, whatever it opens and however slowly it reads.
    pub max_bytes_per_reader: usize,
    /// Blocks of at least this many bytes are sent by reference if their memory is a file; never
    /// if `None`. That saves the owner a copy, but costs it a look-up for each page, and blocks
    /// stay pinned until the reader has read them. On the loopback interface with pages of 4 KiB
    /// copying is cheaper; on a network card with huge pages, measure.
    pub by_reference: Option<usize>,
    /// The longest that a handshake may take.
    pub handshake_time: Duration,
    /// The longest that a request may take to arrive once it has begun to.
    pub request_time: Duration,
    /// The longest that a response may take, however patient its reader is.
    pub response_time: Duration,
    /// Counts refusals.
    pub refusals: Refusals,
    /// Where readers' reports of damaged blocks go, if anyone looks at them.
    pub suspects: Option<SuspectSender>,
}

impl ServerConfig {
    /// The defaults for a tier with blocks of `namespace`.
    pub fn new(namespace: NamespaceId, credential: Credential) -> Self {
        Self {
            namespace,
            credential,
            tls: None,
            advertise: None,
            max_connections: 256,
            max_connections_per_reader: 16,
            max_request_bytes: 64 << 20,
            max_bytes_per_reader: 256 << 20,
            by_reference: None,
            handshake_time: Duration::from_secs(5),
            request_time: Duration::from_secs(5),
            response_time: Duration::from_secs(30),
            refusals: Refusals::default(),
            suspects: None,
        }
    }
}

/// What an owner has sent to its peers since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts what all connections send.
#[derive(Default)]
pub(crate) struct Tally {
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub(crate) fn add(&self, blocks: u64, bytes: u64) {
        self.blocks.fetch_add(blocks, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The owner's half of the TCP transport. Dropping it closes all connections and waits for their
/// threads, which takes no longer than they need to notice.
pub struct TcpServer {
    address: SocketAddr,
    endpoint: String,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    tier: Arc<dyn BlockTier>,
    /// Brings what lies in other tiers.
    stager: OnceLock<Arc<dyn Stager>>,
    config: ServerConfig,
    served: Arc<Tally>,
    state: Mutex<State>,
    stopping: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    last: u64,
    open: HashMap<u64, Open>,
    /// What each reader has, by its name.
    readers: HashMap<String, Usage>,
}

/// What one reader has.
#[derive(Default)]
struct Usage {
    connections: usize,
    /// Bytes of blocks that it asked for and that may be pinned.
    bytes: usize,
}

/// A connection: its socket, to be shut down, and its thread, to be waited for.
struct Open {
    stream: Arc<TcpStream>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Serves the blocks of `tier` at `address`; port 0 takes a free one.
    pub fn start(
        address: SocketAddr,
        tier: Arc<dyn BlockTier>,
        config: ServerConfig,
    ) -> io::Result<Self> {
        let bytes = tier.shape().block_bytes;
        if bytes == 0 || bytes as u64 > BlockLayout::MAX_BLOCK_BYTES {
            let text = format!("blocks of {bytes} bytes cannot be served");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = Arc::new(TcpListener::bind(address)?);
        let address = listener.local_addr()?;
        let advertised = config.advertise.unwrap_or_else(|| address.ip());
        let scheme = scheme(config.tls.as_ref());
        let shared = Arc::new(Shared {
            tier,
            stager: OnceLock::new(),
            config,
            served: Arc::default(),
            state: Mutex::default(),
            stopping: Condvar::new(),
        });
        let (accepting, at) = (shared.clone(), listener.clone());
        let accepting = Builder::new()
            .name("flexkv-tcp-acc".to_owned())
            .spawn(move || accepting.accept_all(&at))?;
        Ok(Self {
            address,
            endpoint: format!("{scheme}://{}", SocketAddr::new(advertised, address.port())),
            listener,
            shared,
            accepting: Some(accepting),
        })
    }

    /// Serves blocks of other tiers, too: `stager` brings them to memory. The first one stays.
    pub fn stage_with(&self, stager: Arc<dyn Stager>) {
        // A second one would be a mistake of no consequence: the first does the same.
        self.shared.stager.get_or_init(|| stager);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where peers find it, such as `tcp://10.0.0.1:7000`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// Tells what has been sent to peers so far, also once the server has been dropped.
    pub fn count_served(&self) -> impl Fn() -> Served + Send + Sync + use<> {
        let served = self.shared.served.clone();
        move || Served {
            blocks: served.blocks.load(Ordering::Relaxed),
            bytes: served.bytes.load(Ordering::Relaxed),
        }
    }

    /// Closes all connections and waits for their threads; the same as dropping it.
    pub fn shutdown(self) {}
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.stopping.notify_all();
        // Shutting a listening socket down ends a call of accept that waits on it.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, address = %self.address, "cannot shut the listener down");
        }
        self.accepting.take().map(JoinHandle::join);
        let open = std::mem::take(&mut self.shared.lock().open);
        for connection in open.values() {
            // It fails only if the connection has ended already.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        for mut connection in open.into_values() {
            connection.thread.take().map(JoinHandle::join);
        }
    }
}

impl std::fmt::Debug for TcpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpServer")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn accept_all(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.lock().stopped {
                return;
            }
            let started = accepted.and_then(|(stream, peer)| self.admit(stream, peer));
            if let Err(error) = started {
                tracing::warn!(%error, "cannot take a connection");
                self.pause();
            }
        }
    }

    /// Waits a little, or until the server stops.
    fn pause(&self) {
        let waited = self
            .stopping
            .wait_timeout_while(self.lock(), ACCEPT_PAUSE, |state| !state.stopped);
        drop(waited);
    }

    /// Starts the thread of a new connection. Beyond the bound, a few threads say why not; beyond
    /// those, connections are just closed.
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let mut state = self.lock();
        let open = state.open.len();
        if open >= self.config.max_connections + REFUSALS {
            return Ok(());
        }
        let admitted = open < self.config.max_connections;
        state.last += 1;
        let id = state.last;
        let stream = Arc::new(stream);
        let entry = Open {
            stream: stream.clone(),
            thread: None,
        };
        state.open.insert(id, entry);
        drop(state);
        let guard = Registered {
            shared: self.clone(),
            id,
        };
        let thread = Builder::new()
            .name("flexkv-tcp-put".to_owned())
            .spawn(move || guard.serve(stream, peer, admitted))?;
        if let Some(entry) = self.lock().open.get_mut(&id) {
            entry.thread = Some(thread);
        }
        Ok(())
    }

    /// A place for a connection of `reader`, or why there is none.
    fn place(self: &Arc<Self>, reader: &str, admitted: bool) -> Result<Place, String> {
        if !admitted {
            let most = self.config.max_connections;
            return Err(format!("all {most} connections are in use"));
        }
        let most = self.config.max_connections_per_reader;
        let mut state = self.lock();
        let usage = state.readers.entry(reader.to_owned()).or_default();
        if usage.connections >= most {
            return Err(format!("all {most} connections of {reader} are in use"));
        }
        usage.connections += 1;
        drop(state);
        Ok(Place {
            shared: self.clone(),
            reader: reader.to_owned(),
        })
    }

    fn source(&self) -> Source<'_> {
        Source {
            tier: &*self.tier,
            stager: self.stager.get().map(|stager| &**stager),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those of its reader, which it leaves when this is dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
    reader: String,
}

impl Place {
    /// Leave to pin `bytes` of blocks for the reader, unless it has too many already.
    pub(crate) fn lend(&self, bytes: usize) -> Option<Lent> {
        let most = self.shared.config.max_bytes_per_reader;
        let mut state = self.shared.lock();
        let usage = state.readers.get_mut(&self.reader)?;
        if usage.bytes > 0 && usage.bytes + bytes > most {
            return None;
        }
        usage.bytes += bytes;
        drop(state);
        Some(Lent {
            shared: self.shared.clone(),
            reader: self.reader.clone(),
            bytes,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().take_back(&self.reader, 1, 0);
    }
}

/// Leave to pin blocks for a reader, which ends when this is dropped.
pub(crate) struct Lent {
    shared: Arc<Shared>,
    reader: String,
    bytes: usize,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.lock().take_back(&self.reader, 0, self.bytes);
    }
}

impl State {
    /// Takes connections and bytes from a reader, and forgets one that has none left.
    fn take_back(&mut self, reader: &str, connections: usize, bytes: usize) {
        if let Some(usage) = self.readers.get_mut(reader) {
            usage.connections -= connections;
            usage.bytes -= bytes;
            if usage.connections == 0 && usage.bytes == 0 {
                self.readers.remove(reader);
            }
        }
    }
}

/// A connection in the server's list, which it leaves when this is dropped.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Registered {
    fn serve(self, stream: Arc<TcpStream>, peer: SocketAddr, admitted: bool) {
        let shared = self.shared.clone();
        let session = Session::new(&stream, &shared.source(), &shared.config, &shared.served);
        let (result, held) = session.run(&|reader| shared.place(reader, admitted));
        if let Err(error) = result {
            tracing::debug!(%error, %peer, "connection ended");
        }
        drop(self);
        drop(stream);
        drop(held);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.lock().open.remove(&self.id);
    }
}
