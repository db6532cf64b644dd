//! Blocks of 1 MiB from a peer on this machine, over TCP, verified; one block and sixteen at once.
//!
//! Baseline: copying the same slots within this process, verified and not.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use flexkv_benches::{keys, payload};
use flexkv_block::{BlockKey, Checksum, Location, NamespaceId, Tier};
use flexkv_handshake::Credential;
use flexkv_ports::{BlockTier, FetchOutcome, HeapTier, TierShape, Transport, Want};
use flexkv_tcp::{ServerConfig, TcpServer, TcpTransport, TransportConfig};

const BLOCK_BYTES: usize = 1 << 20;
const SLOTS: u32 = 16;
const DEADLINE: Duration = Duration::from_secs(10);

struct Pair {
    stored: Vec<(Location, BlockKey)>,
    owner: Arc<HeapTier>,
    reader: HeapTier,
    server: TcpServer,
    transport: TcpTransport,
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let pair = pair();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let mut group = criterion.benchmark_group("tcp_fetch");
    for blocks in [1, SLOTS as usize] {
        group.throughput(Throughput::Bytes((blocks * BLOCK_BYTES) as u64));
        group.bench_function(BenchmarkId::new("tcp", blocks), |b| {
            b.iter(|| runtime.block_on(pair.fetch(blocks)));
        });
        group.bench_function(BenchmarkId::new("baseline_copy", blocks), |b| {
            b.iter(|| pair.copy(blocks, false));
        });
        group.bench_function(BenchmarkId::new("baseline_copy_verified", blocks), |b| {
            b.iter(|| pair.copy(blocks, true));
        });
    }
    group.finish();
}

fn pair() -> Pair {
    let tier = || {
        HeapTier::new(TierShape {
            tier: Tier::Host,
            slots: SLOTS,
            block_bytes: BLOCK_BYTES,
        })
    };
    let owner = Arc::new(tier());
    let mut stored = Vec::new();
    for (i, key) in keys(1, SLOTS as usize).into_iter().enumerate() {
        let bytes = payload(i as u64, BLOCK_BYTES);
        let slot = owner.reserve().expect("a free slot");
        slot.bytes().write(0, &bytes);
        stored.push((owner.commit(slot, key, Checksum::of(&bytes)), key));
    }
    let namespace = NamespaceId::from_u128(1);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let credential = Credential::new(b"benches", "bench");
    let config = ServerConfig::new(namespace, credential.clone());
    let server = TcpServer::start(address, owner.clone(), config);
    let config = TransportConfig::new(namespace, BLOCK_BYTES as u32, credential);
    Pair {
        stored,
        owner,
        reader: tier(),
        server: server.expect("a free port"),
        transport: TcpTransport::new(config),
    }
}

impl Pair {
    async fn fetch(&self, blocks: usize) {
        let wants = self.stored[..blocks].iter().map(|(location, key)| Want {
            location: *location,
            key: *key,
            into: self.reader.reserve().expect("a free slot"),
        });
        let wants = wants.collect();
        let answer = self
            .transport
            .fetch(self.server.endpoint(), wants, DEADLINE)
            .await;
        let good = |outcome| matches!(outcome, FetchOutcome::Fetched(_));
        assert!(
            answer.iter().all(|fetched| good(fetched.outcome)),
            "{answer:?}"
        );
    }

    fn copy(&self, blocks: usize, verified: bool) {
        for (location, key) in &self.stored[..blocks] {
            let from = self.owner.pin(*location, *key).expect("the block is there");
            let into = self.reader.reserve().expect("a free slot");
            into.bytes().write_from(from.bytes());
            if verified {
                assert_eq!(into.bytes().checksum(), from.checksum());
            }
            black_box(into);
        }
    }
}
