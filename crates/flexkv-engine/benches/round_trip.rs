//! What a match costs an engine: a round trip over the socket, client and node on threads of their
//! own as if they were processes. The cache answers at once, so the protocol is all that is timed.

#[path = "../tests/it/memfd.rs"]
mod memfd;

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use flexkv_block::{BlockKey, NamespaceId};
use flexkv_engine::{EngineClient, EngineServer, ServerConfig};
use flexkv_ports::{
    BoxFuture, CacheError, Filled, KvCache, LoadLimits, LoadStatus, Loaded, Memory, PrefixHit,
    RemovalFeed, Removals, StoreGrant, Ticket,
};

use crate::memfd::MemfdMemory;

/// Has every block and keeps no books.
struct Everything;

fn unknown<T: Send + 'static>(ticket: Ticket) -> BoxFuture<'static, Result<T, CacheError>> {
    Box::pin(async move { Err(CacheError::UnknownTicket { ticket }) })
}

impl KvCache for Everything {
    fn namespace(&self) -> NamespaceId {
        NamespaceId::from_u128(1)
    }

    fn block_bytes(&self) -> usize {
        4096
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        Box::pin(async move {
            Ok(PrefixHit {
                ticket: Ticket(1),
                blocks: keys.len(),
                local: 0,
            })
        })
    }

    fn load(
        &self,
        ticket: Ticket,
        _: usize,
        _: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>> {
        unknown(ticket)
    }

    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        unknown(ticket)
    }

    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        unknown(ticket)
    }

    fn store<'a>(
        &'a self,
        _: &'a [BlockKey],
        _: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        unknown(Ticket(0))
    }

    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        _: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        unknown(ticket)
    }

    fn release(&self, _: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async { Ok(()) })
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        Box::pin(async { Ok(RemovalFeed::default().watch()) })
    }
}

fn round_trips(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run").join("node.sock");
    let node = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("the node's runtime");
    let arena: Arc<dyn Memory> = Arc::new(MemfdMemory::new(1 << 20));
    let server = {
        let _inside = node.enter();
        EngineServer::start(&path, Arc::new(Everything), arena, ServerConfig::default())
    };
    let server = server.expect("the service starts");
    let engine = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let engine = engine.expect("the engine's runtime");
    let client = engine
        .block_on(EngineClient::attach(&path))
        .expect("attach");
    let mut group = criterion.benchmark_group("local protocol");
    for blocks in [16u128, 128, 512, 2048, 8192] {
        let keys: Vec<_> = (0..blocks).map(|n| BlockKey::from_u128(n << 64)).collect();
        group.bench_function(format!("match of {blocks} keys"), |bencher| {
            bencher.iter(|| engine.block_on(client.match_prefix(&keys)));
        });
    }
    group.finish();
    drop(client);
    node.block_on(server.shutdown());
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
