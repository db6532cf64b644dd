//! Owners and readers for the tests.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, NamespaceId};
use flexkv_handshake::Credential;
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{BlockTier as _, FetchOutcome, MemorySlice, Transport as _, Want};
use flexkv_rdma::{Nic, RdmaArena, RdmaConfig, RdmaServer, RdmaServerConfig, RdmaTransport};

pub(crate) const NAMESPACE: NamespaceId = NamespaceId::from_u128(0xfeed);
pub(crate) const BYTES: usize = 20_000;
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The device that the tests run over.
#[cfg(feature = "verbs")]
pub(crate) fn nic() -> Arc<dyn Nic> {
    Arc::new(flexkv_rdma::VerbsNic::open(None, None).expect("a device that can be used"))
}

/// The device that the tests run over.
#[cfg(not(feature = "verbs"))]
pub(crate) fn nic() -> Arc<dyn Nic> {
    Arc::new(crate::soft::SoftNic::new())
}

/// An arena, and the same registered.
pub(crate) fn arena(slots: u32, block_bytes: usize) -> (HostTier, Arc<RdmaArena>) {
    arena_of(nic(), NAMESPACE, slots, block_bytes)
}

pub(crate) fn arena_of(
    nic: Arc<dyn Nic>,
    namespace: NamespaceId,
    slots: u32,
    block_bytes: usize,
) -> (HostTier, Arc<RdmaArena>) {
    let tier = HostTier::create(&HostConfig {
        slots,
        block_bytes,
        namespace,
        arena: fastrand::Rng::new().u64(..),
        huge_pages: false,
        populate: false,
    })
    .expect("a small arena");
    let registered = RdmaArena::register(nic, tier.memory(), *tier.layout());
    (tier, registered.expect("memory that can be registered"))
}

pub(crate) fn credential(secret: &str) -> Credential {
    Credential::new(secret.as_bytes(), "a-node")
}

/// As it comes, but for a device that may be emulated on a busy machine.
pub(crate) fn config() -> RdmaConfig {
    RdmaConfig {
        open_time: Duration::from_secs(10),
        ..RdmaConfig::new(credential("s"))
    }
}

/// Serves on a port that is free.
pub(crate) fn serve(arena: Arc<RdmaArena>) -> RdmaServer {
    serve_at(SocketAddr::from(([127, 0, 0, 1], 0)), arena)
}

pub(crate) fn serve_at(address: SocketAddr, arena: Arc<RdmaArena>) -> RdmaServer {
    let config = RdmaServerConfig::new(credential("s"));
    let server = RdmaServer::start(address, arena, config);
    server.expect("an address to serve at")
}

/// An address at which nobody serves.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

pub(crate) fn key(n: u32) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | 5)
}

/// The bytes of block `n`, which differ from byte to byte and from block to block.
fn content(n: u32, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(u64::from(n));
    (0..bytes).map(|_| rng.u8(..)).collect()
}

/// Stores blocks `0..count`.
pub(crate) fn store(tier: &HostTier, count: u32) -> Vec<(Location, u32)> {
    (0..count).map(|n| (put(tier, n), n)).collect()
}

pub(crate) fn put(tier: &HostTier, n: u32) -> Location {
    let slot = tier.reserve().expect("a free slot");
    let bytes = content(n, tier.shape().block_bytes);
    slot.bytes().write(0, &bytes);
    tier.commit(slot, key(n), Checksum::of(&bytes))
}

/// An owner with blocks.
pub(crate) struct Owner {
    pub(crate) tier: HostTier,
    pub(crate) stored: Vec<(Location, u32)>,
    pub(crate) server: RdmaServer,
}

impl Owner {
    pub(crate) fn with(count: u32, block_bytes: usize) -> Self {
        let (tier, registered) = arena(count, block_bytes);
        Self {
            stored: store(&tier, count),
            server: serve(registered),
            tier,
        }
    }

    /// Flips a bit of the arena. Does nothing where a mistake is planted, so that the tests must fail.
    pub(crate) fn flip(&self, offset: usize) {
        if std::env::var_os("FLEXKV_RDMA_CANARY").is_none() {
            self.flip_bit(offset, 4);
        }
    }

    pub(crate) fn flip_bit(&self, offset: usize, bit: usize) {
        let byte = MemorySlice::new(self.tier.memory(), offset, 1).expect("inside of the arena");
        let found = byte.to_vec()[0];
        byte.write(0, &[found ^ 1 << bit]);
    }
}

/// A reader with slots of its own.
pub(crate) struct Reader {
    pub(crate) tier: HostTier,
    pub(crate) transport: RdmaTransport,
    slots: usize,
}

impl Reader {
    pub(crate) fn new(slots: u32, block_bytes: usize) -> Self {
        Self::with(config(), arena(slots, block_bytes))
    }

    pub(crate) fn with(config: RdmaConfig, (tier, arena): (HostTier, Arc<RdmaArena>)) -> Self {
        Self {
            slots: tier.free_slots(),
            tier,
            transport: RdmaTransport::new(arena, config),
        }
    }

    pub(crate) async fn fetch(&self, from: &str, blocks: &[(Location, u32)]) -> Vec<FetchOutcome> {
        self.fetch_within(DEADLINE, from, blocks).await
    }

    /// The outcomes of a fetch; what was fetched must be the blocks.
    pub(crate) async fn fetch_within(
        &self,
        deadline: Duration,
        from: &str,
        blocks: &[(Location, u32)],
    ) -> Vec<FetchOutcome> {
        let want = |(location, n): &(Location, u32)| Want {
            location: *location,
            key: key(*n),
            into: self.tier.reserve().expect("a free slot at the reader"),
        };
        let wants: Vec<_> = blocks.iter().map(want).collect();
        let given: Vec<_> = wants.iter().map(|want| want.into.slot()).collect();
        let fetching = self.transport.fetch(from, wants, deadline);
        let fetched = tokio::time::timeout(deadline + DEADLINE, fetching).await;
        let fetched = fetched.expect("no fetch hangs");
        let back: Vec<_> = fetched.iter().map(|fetched| fetched.into.slot()).collect();
        assert_eq!(back, given, "the buffers that came back");
        for ((_, n), fetched) in blocks.iter().zip(&fetched) {
            if let FetchOutcome::Fetched(sum) = fetched.outcome {
                let bytes = fetched.into.bytes().to_vec();
                assert!(bytes == content(*n, bytes.len()), "bytes of block {n}");
                assert_eq!(sum, Checksum::of(&bytes));
            }
        }
        fetched.iter().map(|fetched| fetched.outcome).collect()
    }

    /// Every slot is free again, now or soon.
    pub(crate) async fn has_all_buffers(&self) {
        eventually("all buffers return", || {
            self.tier.free_slots() == self.slots
        })
        .await;
    }
}

pub(crate) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(waited.is_ok(), "not so: {what}");
}

pub(crate) fn all_fetched(outcomes: &[FetchOutcome]) -> bool {
    let fetched = |outcome: &FetchOutcome| matches!(outcome, FetchOutcome::Fetched(_));
    outcomes.iter().all(fetched)
}

pub(crate) fn all_unreachable(outcomes: &[FetchOutcome]) -> bool {
    outcomes
        .iter()
        .all(|outcome| *outcome == FetchOutcome::Unreachable)
}
