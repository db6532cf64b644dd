//! What the tests share: test blocks, a tier on a file, an owner with a reader, a scripted owner.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, NamespaceId, Tier};
use flexkv_handshake::{
    Answering, Asking, CONFIRM_BYTES, Credential, HELLO_BYTES, PROOF_BYTES, Refusal, Terms,
    VERDICT_BYTES, WELCOME_BYTES,
};
use flexkv_ports::{
    BlockTier, Eviction, FetchOutcome, Fetched, HeapTier, Memory, MemorySlice, PinRefusal,
    ReadSlot, SlotOwner, TierShape, TierUsage, Transport as _, Want, WriteSlot,
};
use flexkv_tcp::wire::{MAGIC, VERSION};
use flexkv_tcp::{ServerConfig, TcpServer, TcpTransport, TransportConfig};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use rustix::mm::{MapFlags, ProtFlags};

pub(crate) const NAMESPACE: NamespaceId = NamespaceId::from_u128(0xfeed);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn key(n: u32) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | 0xabc)
}

pub(crate) fn block(n: u32, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (n as usize * 31 + i * 7 + i / 256) as u8)
        .collect()
}

pub(crate) fn heap(slots: u32, block_bytes: usize) -> Arc<dyn BlockTier> {
    Arc::new(HeapTier::new(TierShape {
        tier: Tier::Host,
        slots,
        block_bytes,
    }))
}

/// Stores test blocks `0..count`.
pub(crate) fn store(tier: &dyn BlockTier, count: u32) -> Vec<(Location, u32)> {
    let put = |n| {
        let bytes = block(n, tier.shape().block_bytes);
        let slot = tier.reserve().expect("a free slot at the owner");
        slot.bytes().write(0, &bytes);
        (tier.commit(slot, key(n), Checksum::of(&bytes)), n)
    };
    (0..count).map(put).collect()
}

pub(crate) fn config(block_bytes: usize) -> TransportConfig {
    TransportConfig::new(NAMESPACE, block_bytes as u32, credential())
}

pub(crate) fn credential() -> Credential {
    Credential::new(b"the cluster's", "a-node")
}

pub(crate) fn server_config() -> ServerConfig {
    ServerConfig::new(NAMESPACE, credential())
}

pub(crate) fn serve(tier: Arc<dyn BlockTier>, config: ServerConfig) -> TcpServer {
    serve_at("127.0.0.1:0".parse().expect("an address"), tier, config).expect("a server")
}

pub(crate) fn serve_at(
    address: SocketAddr,
    tier: Arc<dyn BlockTier>,
    config: ServerConfig,
) -> std::io::Result<TcpServer> {
    TcpServer::start(address, tier, config)
}

/// A reader: a transport and the tier it fetches into.
pub(crate) struct Reader {
    pub(crate) transport: TcpTransport,
    pub(crate) tier: Arc<dyn BlockTier>,
}

impl Reader {
    pub(crate) fn new(slots: u32, block_bytes: usize) -> Self {
        Self::with(config(block_bytes), slots)
    }

    pub(crate) fn with(config: TransportConfig, slots: u32) -> Self {
        Self {
            tier: heap(slots, config.block_bytes as usize),
            transport: TcpTransport::new(config),
        }
    }

    pub(crate) fn wants(&self, blocks: &[(Location, u32)]) -> Vec<Want> {
        let want = |(location, n): &(Location, u32)| Want {
            location: *location,
            key: key(*n),
            into: self.tier.reserve().expect("a free slot at the reader"),
        };
        blocks.iter().map(want).collect()
    }

    /// Fetches; the answer must come, with one entry per want.
    pub(crate) async fn fetch(
        &self,
        endpoint: &str,
        blocks: &[(Location, u32)],
        deadline: Duration,
    ) -> Vec<Fetched> {
        let fetching = self.transport.fetch(endpoint, self.wants(blocks), deadline);
        let fetched = tokio::time::timeout(deadline + DEADLINE, fetching).await;
        let fetched = fetched.expect("an answer in time");
        assert_eq!(fetched.len(), blocks.len());
        fetched
    }

    /// The outcomes of a fetch. What was fetched must be the blocks, and the buffers come back.
    pub(crate) async fn outcomes(
        &self,
        endpoint: &str,
        blocks: &[(Location, u32)],
        deadline: Duration,
    ) -> Vec<FetchOutcome> {
        let fetched = self.fetch(endpoint, blocks, deadline).await;
        for ((_, n), fetched) in blocks.iter().zip(&fetched) {
            if let FetchOutcome::Fetched(checksum) = fetched.outcome {
                let bytes = fetched.into.bytes().to_vec();
                assert_eq!(bytes, block(*n, bytes.len()), "block {n}");
                assert_eq!(checksum, Checksum::of(&bytes));
            }
        }
        fetched.iter().map(|fetched| fetched.outcome).collect()
    }

    /// Checks that the blocks arrive, if need be after a while.
    pub(crate) async fn eventually_fetches(&self, endpoint: &str, blocks: &[(Location, u32)]) {
        for _ in 0..2000 {
            let outcomes = self.outcomes(endpoint, blocks, DEADLINE).await;
            if outcomes.iter().all(is_fetched) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{endpoint} never answers");
    }

    pub(crate) async fn all_buffers_return(&self) {
        let slots = self.tier.shape().slots as usize;
        eventually("all buffers return", || self.tier.free_slots() == slots).await;
    }
}

pub(crate) fn is_fetched(outcome: &FetchOutcome) -> bool {
    matches!(outcome, FetchOutcome::Fetched(_))
}

pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("did not happen: {what}");
}

/// An owner that follows a script: each connection is given to a function of the test.
pub(crate) struct Scripted {
    pub(crate) endpoint: String,
    pub(crate) accepted: Arc<AtomicUsize>,
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    pub(crate) fn new(script: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let stopped = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (stop, count) = (stopped.clone(), accepted.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (script, stream) = (script.clone(), stream.expect("a connection"));
                std::thread::spawn(move || script(stream));
            }
        });
        Self {
            endpoint: format!("tcp://{address}"),
            accepted,
            address,
            stopped,
            thread: Some(thread),
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().map(JoinHandle::join);
    }
}

/// The script's half of a good handshake.
pub(crate) fn welcome(stream: &mut TcpStream, block_bytes: usize) {
    let hello = read::<HELLO_BYTES>(stream);
    let proof = read::<PROOF_BYTES>(stream);
    let answered = Answering::reply(&credential(), terms(block_bytes), &hello, &proof);
    let (answering, reply) = answered.expect("a member of the cluster");
    stream.write_all(&reply).expect("room to send");
    let confirm = read::<CONFIRM_BYTES>(stream);
    let proven = answering.confirmed(&confirm).expect("its confirmation");
    stream
        .write_all(&proven.verdict(None))
        .expect("room to send");
}

pub(crate) fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("a whole message");
    bytes
}

/// Reads and discards until the other side closes.
pub(crate) fn listen_silently(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
}

/// Waits a little, on a socket on which nothing comes. False once the other side has closed.
pub(crate) fn pause(stream: &TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).expect("a time-out");
    match (&mut &*stream).read(&mut [0]) {
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        Ok(bytes) => bytes > 0,
    }
}

/// A reader of bytes: connected.
pub(crate) fn dial(server: &TcpServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream
}

/// A connection on which the handshake was made.
pub(crate) fn greeted(server: &TcpServer, block_bytes: usize) -> TcpStream {
    let mut stream = dial(server);
    let begun = Asking::begin(&credential(), terms(block_bytes));
    let (asking, opening) = begun.expect("randomness");
    stream.write_all(&opening).expect("room to send");
    let welcome = read::<WELCOME_BYTES>(&mut stream);
    let proof = read::<PROOF_BYTES>(&mut stream);
    let confirmed = asking.confirm(&welcome, &proof);
    let (proving, confirm) = confirmed.expect("an owner of the cluster");
    stream.write_all(&confirm).expect("room to send");
    let verdict = read::<VERDICT_BYTES>(&mut stream);
    proving.accepted(&verdict).expect("accepted");
    stream
}

/// The beginning of a good handshake.
pub(crate) fn opening(block_bytes: usize) -> [u8; HELLO_BYTES + PROOF_BYTES] {
    let begun = Asking::begin(&credential(), terms(block_bytes));
    begun.expect("randomness").1
}

pub(crate) fn terms(block_bytes: usize) -> Terms {
    Terms {
        magic: MAGIC,
        version: VERSION,
        block_bytes: block_bytes as u32,
        namespace: NAMESPACE,
    }
}

/// A tier whose readable bytes lie in a file in memory, so that they can be sent by reference.
pub(crate) struct FileTier {
    table: HeapTier,
    file: Arc<Mapped>,
}

struct Mapped {
    file: OwnedFd,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is reached only through raw pointers, see `Memory`.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

// SAFETY: the mapping of `len` bytes from `base` is writable and lives until the value is dropped.
unsafe impl Memory for Mapped {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `FileTier::new` and nobody else ends it.
        unsafe { rustix::mm::munmap(self.base.cast(), self.len) }.expect("unmapped");
    }
}

/// Keeps the table's pin for as long as the file's.
struct Pinned(Mutex<Option<ReadSlot>>);

impl SlotOwner for Pinned {
    fn abandon(&self, _: flexkv_block::SlotId) {}

    fn unpin(&self, _: flexkv_block::SlotId) {
        self.0.lock().expect("no panic").take();
    }
}

impl FileTier {
    pub(crate) fn new(slots: u32, block_bytes: usize) -> Arc<Self> {
        let shape = TierShape {
            tier: Tier::Host,
            slots,
            block_bytes,
        };
        let len = slots as usize * block_bytes;
        let file = rustix::fs::memfd_create("tier", rustix::fs::MemfdFlags::CLOEXEC);
        let file = file.expect("a file in memory");
        rustix::fs::ftruncate(&file, len as u64).expect("its size");
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let (no_hint, shared) = (std::ptr::null_mut(), MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
        let base = unsafe { rustix::mm::mmap(no_hint, len, rights, shared, &file, 0) };
        let base = base.expect("a mapping").cast();
        Arc::new(Self {
            table: HeapTier::new(shape),
            file: Arc::new(Mapped { file, base, len }),
        })
    }

    fn bytes(&self, location: Location) -> MemorySlice {
        let len = self.shape().block_bytes;
        let offset = location.slot.0 as usize * len;
        MemorySlice::new(self.file.clone(), offset, len).expect("inside the file")
    }
}

impl BlockTier for FileTier {
    fn shape(&self) -> TierShape {
        self.table.shape()
    }

    fn free_slots(&self) -> usize {
        self.table.free_slots()
    }

    fn usage(&self) -> TierUsage {
        self.table.usage()
    }

    fn reserve(&self) -> Option<WriteSlot> {
        self.table.reserve()
    }

    fn commit(&self, filled: WriteSlot, key: BlockKey, checksum: Checksum) -> Location {
        let bytes = filled.bytes().clone();
        let location = self.table.commit(filled, key, checksum);
        self.bytes(location).write_from(&bytes);
        location
    }

    fn pin(&self, location: Location, key: BlockKey) -> Result<ReadSlot, PinRefusal> {
        let pin = self.table.pin(location, key)?;
        let (checksum, bytes) = (pin.checksum(), self.bytes(location));
        let owner = Arc::new(Pinned(Mutex::new(Some(pin))));
        Ok(ReadSlot::new(location, key, checksum, bytes, owner))
    }

    fn evict(&self, location: Location) -> Eviction {
        self.table.evict(location)
    }
}

/// Counts one kind of refusal.
pub(crate) struct Only(pub(crate) Refusal, pub(crate) Arc<AtomicU64>);

impl Recorder for Only {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let counted = key.labels().any(|label| label.value() == self.0.name());
        if counted {
            Counter::from_arc(self.1.clone())
        } else {
            Counter::noop()
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
