//! A node that reads what owners have, as any node does: it knows of it from a metadata store, here one in
//! memory, and fetches by TCP.
//!
//! Knows nothing of what is measured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_block::BlockKey;
use flexkv_handshake::Credential;
use flexkv_index::{NodeId, NodeInfo, Publisher, PublisherConfig, Residency};
use flexkv_node::{Node, NodeConfig, NodePorts};
use flexkv_ports::{HeapStore, KvCache};
use flexkv_tcp::{TcpTransport, TransportConfig};
use tokio::time::{Instant, sleep};

use super::DEADLINE;
use super::owner::{NAMESPACE, Offer, arena, block_key, location};

/// How long what owners have stays known.
const LEASE: Duration = Duration::from_secs(3600);
/// How long a reader may take to learn of it, and how often to look.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What is known of some owners, which all have the same blocks.
pub(super) struct Known {
    block_bytes: usize,
    owners: usize,
    keys: Vec<BlockKey>,
    store: HeapStore,
}

impl Known {
    /// Publishes the blocks of `offer`, in an order of their own, as prompts of `prompt` blocks of owners
    /// at all of these endpoints.
    pub(super) async fn new(offer: &Offer, endpoints: &[String], prompt: usize) -> Result<Self> {
        let store = HeapStore::new();
        let mut slots: Vec<u32> = (0..offer.slots).collect();
        fastrand::Rng::with_seed(3).shuffle(&mut slots);
        let mut held = Residency::default();
        let mut keys: Vec<BlockKey> = Vec::new();
        for slot in slots {
            let parent = keys.last().copied();
            let parent = parent.filter(|_| !keys.len().is_multiple_of(prompt));
            held.insert(block_key(slot), parent, location(slot));
            keys.push(block_key(slot));
        }
        for (number, endpoint) in endpoints.iter().enumerate() {
            publish(&store, number, offer.block_bytes, endpoint, &held).await?;
        }
        Ok(Self {
            block_bytes: offer.block_bytes,
            owners: endpoints.len(),
            keys,
            store,
        })
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// All blocks, one prompt after the other.
    pub(super) fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// A new node with so much memory, which knows of all blocks and has none.
    pub(super) async fn reader(&self, secret: &[u8], memory: u64) -> Result<Arc<Node>> {
        let tier = arena(self.block_bytes, memory)?;
        let credential = Credential::new(secret, "bench-reader");
        let bytes = u32::try_from(self.block_bytes).context("a block is too large")?;
        let transport = TcpTransport::new(TransportConfig::new(NAMESPACE, bytes, credential));
        let ports = NodePorts {
            tier: Arc::new(tier),
            staged: None,
            store: Some(Arc::new(self.store.clone())),
            transports: vec![Arc::new(transport)],
            rng: fastrand::Rng::new(),
        };
        let config = NodeConfig::new("bench-reader".parse()?, NAMESPACE);
        let node = Node::start(config, ports, &metrics::NoopRecorder);
        let node = node.context("cannot start a node")?;
        let replicas = self.owners * self.keys.len();
        let due = Instant::now() + KNOWN_WITHIN;
        while node.sync_stats().snapshot.replicas < replicas {
            if Instant::now() >= due {
                bail!("the reader does not learn what owners have");
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(node)
    }
}

/// Loads a prompt of which the node has nothing, and lets it go.
pub(super) async fn load(node: &dyn KvCache, keys: &[BlockKey]) -> Result<()> {
    let hit = node.match_prefix(keys).await?;
    node.load(hit.ticket, hit.blocks, DEADLINE.into()).await?;
    let loaded = node.wait(hit.ticket).await?;
    node.release(hit.ticket).await?;
    if loaded.remote != keys.len() {
        bail!("{} of {} blocks came", loaded.remote, keys.len());
    }
    Ok(())
}

/// Publishes what an owner holds, as its node would.
async fn publish(
    store: &HeapStore,
    number: usize,
    block_bytes: usize,
    endpoint: &str,
    held: &Residency,
) -> Result<()> {
    let node = NodeId {
        name: format!("bench-owner-{number}").parse()?,
        incarnation: fastrand::Rng::new().u64(..),
    };
    let bytes = u32::try_from(block_bytes)?;
    let endpoints = vec![endpoint.to_owned()];
    let info = NodeInfo::new(node, NAMESPACE, bytes, String::new(), endpoints)?;
    let config = PublisherConfig {
        lease_ttl: LEASE,
        ..PublisherConfig::default()
    };
    let mut publisher = Publisher::new(config, info);
    let began = Instant::now();
    while !publisher.is_settled() {
        let Some(action) = publisher.poll(began.elapsed(), held) else {
            continue;
        };
        let outcome = flexkv_node::carry_out(store, action).await?;
        publisher.handle(began.elapsed(), outcome);
    }
    Ok(())
}
