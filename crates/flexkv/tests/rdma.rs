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
use metrics::NoopRecorder;
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
    Instance::start(spec, &NoopRecorder).expect("a node")
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

/// Runs the prompt once the node has heard of all its blocks.
async fn run_when_known(instance: &Instance, keys: &[BlockKey]) -> Outcome {
    let cache = instance.cache();
    let known = async {
        loop {
            let hit = cache.match_prefix(keys).await.expect("an answer");
            cache.release(hit.ticket).await.expect("released");
            if hit.blocks == keys.len() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, known).await;
    waited.expect("the node hears of the blocks");
    engine(instance).run(keys).await.expect("an outcome")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_loads_by_rdma_what_another_stored() {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES).expect("a deployment");
    let store = Arc::new(HeapStore::default());
    let rdma = || {
        Some(RdmaSetting {
            port: 0,
            device: None,
        })
    };
    let owner = node("owner", &deployment, &store, rdma());
    let reader = node("reader", &deployment, &store, rdma());
    let plain = node("plain", &deployment, &store, None);
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

    // A node without RDMA reads the same blocks by TCP.
    let loaded = run_when_known(&plain, &prompt).await;
    assert_eq!((loaded.remote, loaded.verified), (BLOCKS, BLOCKS));
    assert!(plain.rdma_counts().is_none());
    for instance in [plain, reader, owner] {
        instance.stop().await;
    }
}
