//! Whole nodes over a real RDMA device: what one stored, another loads by RDMA, and one without a
//! device by TCP.
//!
//! Needs the feature `rdma` and a device; `cargo xtask rdma` runs it in a virtual machine.

#![cfg(feature = "rdma")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flexkv::cluster::Deployment;
use flexkv::config::{MemorySetting, RdmaSetting};
use flexkv::engine::{Engine, Outcome};
use flexkv::instance::{Instance, InstanceSpec};
use flexkv_block::{BlockKey, ClusterSecret, KeyChain};
use flexkv_index::PolicyKind;
use flexkv_node::NodeConfig;
use flexkv_ports::HeapStore;
use metrics::{NoopRecorder, Recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::Semaphore;

const BLOCKS: usize = 100;
const BLOCK_TOKENS: u32 = 16;
const BLOCK_BYTES: u64 = 8192;
const PATIENCE: Duration = Duration::from_secs(30);

fn node(
    name: &str,
    deployment: &Deployment,
    store: &Arc<HeapStore>,
    rdma: Option<RdmaSetting>,
    recorder: &dyn Recorder,
) -> Instance {
    let spec = InstanceSpec {
        node: NodeConfig {
            members_interval: Duration::from_millis(100),
            fetch_timeout: Duration::from_secs(20),
            ..NodeConfig::new(name.parse().expect("a name"), deployment.namespace)
        },
        memory: MemorySetting {
            slots: 256,
            huge_pages: false,
            populate: true,
            policy: PolicyKind::default(),
        },
        ssd: None,
        block_bytes: deployment.block_bytes,
        store: Some(store.clone()),
        secret: b"the nodes' secret".to_vec(),
        shared_memory: false,
        tls: None,
        rdma,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        socket: None,
    };
    Instance::start(spec, recorder).expect("a node")
}

fn keys(deployment: &Deployment, prompt: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..BLOCKS as u32 * BLOCK_TOKENS)
        .map(|token| token ^ prompt)
        .collect();
    let secret = ClusterSecret::derive(b"engines");
    KeyChain::keys(&secret, deployment.root, BLOCK_TOKENS as usize, &tokens)
}

fn engine(instance: &Instance) -> Engine {
    Engine::new(instance.cache(), PATIENCE, Arc::new(Semaphore::new(1)))
}

/// Waits until the node knows of so many leading blocks of `keys`.
async fn knows(instance: &Instance, keys: &[BlockKey], blocks: usize) {
    let cache = instance.cache();
    let known = async {
        loop {
            let hit = cache.match_prefix(keys).await.expect("an answer");
            cache.release(hit.ticket).await.expect("released");
            if hit.blocks == blocks {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, known).await;
    waited.expect("the node hears of the blocks");
}

/// Runs the prompt once the node has heard of all its blocks.
async fn run_when_known(instance: &Instance, keys: &[BlockKey]) -> Outcome {
    knows(instance, keys, keys.len()).await;
    engine(instance).run(keys).await.expect("an outcome")
}

fn anywhere() -> Option<RdmaSetting> {
    let device = None;
    Some(RdmaSetting { port: 0, device })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_loads_by_rdma_what_another_stored() {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES).expect("a deployment");
    let store = Arc::new(HeapStore::default());
    let recorder = PrometheusBuilder::new().build_recorder();
    let owner = node("owner", &deployment, &store, anywhere(), &NoopRecorder);
    let reader = node("reader", &deployment, &store, anywhere(), &recorder);
    let plain = node("plain", &deployment, &store, None, &NoopRecorder);
    let prompt = keys(&deployment, 0);
    let stored = engine(&owner).run(&prompt).await.expect("an outcome");
    assert_eq!(stored.stored, BLOCKS);
    let loaded = run_when_known(&reader, &prompt).await;
    assert_eq!(
        (loaded.remote, loaded.verified, loaded.corrupt),
        (BLOCKS, BLOCKS, 0)
    );
    let counts = reader.rdma_counts().expect("it has a device");
    assert_eq!((counts.blocks, counts.connections), (BLOCKS as u64, 1));
    reader.observer()();
    let told = recorder.handle().render();
    for (metric, count) in [
        ("blocks", counts.blocks),
        ("work_requests", counts.work_requests),
        ("completions", counts.completions),
        ("registrations", counts.registrations),
        ("connections", counts.connections),
    ] {
        let line = format!("flexkv_rdma_{metric}_total{{node=\"reader\"}} {count}");
        assert!(told.lines().any(|found| found == line), "{line}: {told}");
        assert!(count > 0, "{metric}");
    }

    // A node without RDMA reads the same blocks by TCP.
    let loaded = run_when_known(&plain, &prompt).await;
    assert_eq!((loaded.remote, loaded.verified), (BLOCKS, BLOCKS));
    assert!(plain.rdma_counts().is_none());
    for instance in [plain, reader, owner] {
        instance.stop().await;
    }
}

/// Changes a bit of a block in the node's memory.
async fn damage(instance: &Instance, keys: &[BlockKey], index: usize) {
    let cache = instance.cache();
    let hit = cache.match_prefix(keys).await.expect("an answer");
    let loading = cache.load(hit.ticket, hit.blocks, PATIENCE.into());
    loading.await.expect("begun");
    let loaded = cache.wait(hit.ticket).await.expect("an answer");
    let bytes = &loaded.blocks[index].bytes;
    let mut byte = [0];
    bytes.read(99, &mut byte);
    bytes.write(99, &[byte[0] ^ 1]);
    cache.release(hit.ticket).await.expect("released");
}

/// A block that changes in its owner's memory: whoever reads it tells the owner, which looks and drops
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_drops_a_block_that_a_reader_found_damaged() {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES).expect("a deployment");
    let store = Arc::new(HeapStore::default());
    let recorder = PrometheusBuilder::new().build_recorder();
    let owner = node("owner", &deployment, &store, anywhere(), &recorder);
    let reader = node("reader", &deployment, &store, anywhere(), &NoopRecorder);
    let prompt = &keys(&deployment, 0)[..4];
    let stored = engine(&owner).run(prompt).await.expect("an outcome");
    assert_eq!(stored.stored, 4);
    damage(&owner, prompt, 2).await;
    knows(&reader, prompt, 4).await;
    let loaded = engine(&reader).run(prompt).await.expect("an outcome");
    assert_eq!((loaded.verified, loaded.corrupt), (2, 0));
    let line = "flexkv_corrupt_reports_total{node=\"owner\",event=\"confirmed\"} 1";
    let told = async {
        while !recorder
            .handle()
            .render()
            .lines()
            .any(|found| found == line)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.expect("the owner is told, looks and drops it");
    for instance in [reader, owner] {
        instance.stop().await;
    }
}
