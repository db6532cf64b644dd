//! The simulated cluster: real nodes over an in-memory store, tiers and the simulated network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::{NamespaceId, Tier};
use flexkv_index::NodeName;
use flexkv_node::{Node, NodeConfig, NodePorts};
use flexkv_ports::{BlockTier, Faults, FaultyStore, HeapHub, HeapStore, HeapTier, TierShape};
use metrics::NoopRecorder;

use crate::network::Network;
use crate::plant::Plant;

/// Size of a simulated cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) slots: u32,
    pub(crate) block_bytes: usize,
}

struct Running {
    node: Arc<Node>,
    tier: Arc<dyn BlockTier>,
}

/// The nodes and what lies between them.
pub(crate) struct Cluster {
    shape: Shape,
    plant: Option<Plant>,
    pub(crate) store: HeapStore,
    pub(crate) store_faults: Faults,
    pub(crate) network: Network,
    hub: HeapHub,
    running: Mutex<BTreeMap<String, Running>>,
    rng: Mutex<fastrand::Rng>,
}

impl Cluster {
    /// A cluster whose nodes are not started yet.
    pub(crate) fn new(shape: Shape, plant: Option<Plant>, rng: &mut fastrand::Rng) -> Self {
        let hub = HeapHub::new();
        Self {
            shape,
            plant,
            store: HeapStore::new(),
            store_faults: Faults::new(rng.u64(..)),
            network: Network::new(hub.clone(), rng.fork()),
            hub,
            running: Mutex::default(),
            rng: Mutex::new(rng.fork()),
        }
    }

    /// The name of node `i`.
    pub(crate) fn name(i: usize) -> String {
        format!("n{i}")
    }

    /// Starts node `name` with an empty tier and a new incarnation.
    pub(crate) fn start(&self, name: &str) {
        let shape = TierShape {
            tier: Tier::Host,
            slots: self.shape.slots,
            block_bytes: self.shape.block_bytes,
        };
        let tier: Arc<dyn BlockTier> = Arc::new(HeapTier::new(shape));
        let tier = match self.plant {
            Some(plant) => plant.wrap(tier),
            None => tier,
        };
        let endpoint = self.hub.register(name, tier.clone());
        let node_name: NodeName = name
            .parse()
            .unwrap_or_else(|_| unreachable!("n and a number"));
        let config = NodeConfig {
            endpoints: vec![endpoint],
            fetch_timeout: Duration::from_millis(300),
            ..NodeConfig::new(node_name, NamespaceId::from_u128(1))
        };
        let store = FaultyStore::new(self.store.clone(), self.store_faults.clone());
        let rng = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fork();
        let ports = NodePorts {
            tier: tier.clone(),
            store: Some(Arc::new(store)),
            transports: vec![Arc::new(self.network.transport(name))],
            rng,
        };
        let node = Node::start(config, ports, &NoopRecorder)
            .unwrap_or_else(|error| unreachable!("a short name and endpoint: {error}"));
        self.running()
            .insert(name.to_owned(), Running { node, tier });
    }

    /// Node `name` is gone from one moment to the next.
    pub(crate) fn crash(&self, name: &str) {
        self.hub.unregister(name);
        self.running().remove(name);
    }

    /// The node called `name`, unless it has crashed.
    pub(crate) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.running().get(name).map(|running| running.node.clone())
    }

    /// All nodes that run, by name.
    pub(crate) fn live(&self) -> Vec<(String, Arc<Node>)> {
        self.running()
            .iter()
            .map(|(name, running)| (name.clone(), running.node.clone()))
            .collect()
    }

    /// Free slots of node `name`; 0 if it does not run.
    pub(crate) fn free_slots(&self, name: &str) -> usize {
        self.running()
            .get(name)
            .map_or(0, |running| running.tier.free_slots())
    }

    /// Slots of each node.
    pub(crate) fn slots(&self) -> usize {
        self.shape.slots as usize
    }

    /// Nodes of the cluster, running or not.
    pub(crate) fn nodes(&self) -> usize {
        self.shape.nodes
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.shape.block_bytes
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
