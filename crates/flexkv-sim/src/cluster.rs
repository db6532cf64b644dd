//! The simulated cluster: real nodes over simulated stores, tiers and a simulated network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flexkv_block::{NamespaceId, Tier};
use flexkv_index::NodeName;
use flexkv_node::{Admission, Node, NodeConfig, NodePorts};
use flexkv_ports::{
    BlockTier, Faults, FaultyStagedTier, HeapHub, HeapStagedTier, HeapTier, MetadataStore,
    StagedTier, TierShape,
};
use metrics::NoopRecorder;

use crate::network::Network;
use crate::pauses::Pauses;
use crate::plant::Plant;
use crate::store::Store;

/// A simulated cluster's size and settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) slots: u32,
    /// Slots of each node's SSD, which a crash leaves as it is; none if 0.
    pub(crate) ssd_slots: u32,
    pub(crate) admission: Admission,
    pub(crate) block_bytes: usize,
    /// The last node calls itself what the first one does.
    pub(crate) twins: bool,
    /// Most blocks of one entry of a log.
    pub(crate) entry_blocks: usize,
    /// Most bytes of changes that wait at a node.
    pub(crate) queue_bytes: usize,
    /// Logs are begun anew after so many.
    pub(crate) rotate_bytes: usize,
    /// What all nodes may exchange with the store in a second.
    pub(crate) store_bytes_per_second: u64,
}

struct Running {
    node: Arc<Node>,
    tier: Arc<dyn BlockTier>,
}

/// The nodes and what lies between them.
pub(crate) struct Cluster {
    shape: Shape,
    plant: Option<Plant>,
    pub(crate) store: Store,
    pub(crate) network: Network,
    pub(crate) pauses: Pauses,
    hub: HeapHub,
    running: Mutex<BTreeMap<String, Running>>,
    /// Of nodes that run and of those that do not.
    ssds: Mutex<BTreeMap<String, HeapStagedTier>>,
    /// How they fail, all alike.
    pub(crate) ssd_faults: Faults,
    rng: Mutex<fastrand::Rng>,
}

impl Cluster {
    /// A cluster whose nodes are not started yet.
    pub(crate) fn new(shape: Shape, plant: Option<Plant>, rng: &mut fastrand::Rng) -> Self {
        let hub = HeapHub::new();
        let pauses = Pauses::default();
        Self {
            shape,
            plant,
            store: Store::new(rng.u64(..), pauses.clone()),
            network: Network::new(hub.clone(), pauses.clone(), plant, rng.fork()),
            pauses,
            hub,
            running: Mutex::default(),
            ssds: Mutex::default(),
            ssd_faults: Faults::new(rng.u64(..)),
            rng: Mutex::new(rng.fork()),
        }
    }

    /// Where node `i` is, under which everything here knows it.
    pub(crate) fn name(i: usize) -> String {
        format!("n{i}")
    }

    /// What the node at `place` calls itself.
    fn node_name(&self, place: &str) -> NodeName {
        let twin = self.shape.twins && place == Self::name(self.shape.nodes - 1);
        let name = if twin { "n0" } else { place };
        name.parse()
            .unwrap_or_else(|_| unreachable!("n and a number"))
    }

    fn config(&self, place: &str, endpoint: String) -> NodeConfig {
        let defaults = NodeConfig::new(self.node_name(place), NamespaceId::from_u128(1));
        let config = NodeConfig {
            endpoints: vec![endpoint],
            fetch_timeout: Duration::from_millis(300),
            log_entry_blocks: self.shape.entry_blocks,
            log_queue_bytes: self.shape.queue_bytes,
            log_rotate_bytes: self.shape.rotate_bytes,
            store_bytes_per_second: self.shape.store_bytes_per_second,
            admission: self.shape.admission,
            ..defaults
        };
        match self.plant {
            Some(plant) => plant.configure(config),
            None => config,
        }
    }

    /// The SSD of node `name`, with what its earlier lives left there.
    fn ssd(&self, name: &str) -> Option<Arc<dyn StagedTier>> {
        let Shape {
            ssd_slots,
            block_bytes,
            ..
        } = self.shape;
        if ssd_slots == 0 {
            return None;
        }
        let mut ssds = self.ssds.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || HeapStagedTier::new(ssd_slots, block_bytes);
        let ssd = ssds.entry(name.to_owned()).or_insert_with(fresh);
        let faulty = FaultyStagedTier::new(ssd.reopened(), self.ssd_faults.clone());
        Some(Arc::new(faulty))
    }

    /// Starts node `name` with empty memory and a new incarnation.
    pub(crate) fn start(&self, name: &str) {
        let shape = TierShape {
            tier: Tier::Host,
            slots: self.shape.slots,
            block_bytes: self.shape.block_bytes,
        };
        let mut tier: Arc<dyn BlockTier> = Arc::new(HeapTier::new(shape));
        let mut store: Arc<dyn MetadataStore> = Arc::new(self.store.of(name));
        if let Some(plant) = self.plant {
            tier = plant.tier(tier);
            store = plant.store(store);
        }
        let endpoint = self.hub.register(name, tier.clone());
        let rng = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fork();
        let ports = NodePorts {
            tier: tier.clone(),
            staged: self.ssd(name),
            store: Some(store),
            transports: vec![Arc::new(self.network.transport(name))],
            rng,
        };
        let node = Node::start(self.config(name, endpoint), ports, &NoopRecorder)
            .unwrap_or_else(|error| unreachable!("a short name and endpoint: {error}"));
        let stager: Weak<Node> = Arc::downgrade(&node);
        self.hub.register_stager(name, stager);
        self.running()
            .insert(name.to_owned(), Running { node, tier });
    }

    /// Node `name` is gone from one moment to the next.
    pub(crate) fn crash(&self, name: &str) {
        self.hub.unregister(name);
        self.running().remove(name);
        self.pauses.resume(name);
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

    /// Blocks that the SSD of node `name` holds.
    pub(crate) fn ssd_blocks(&self, name: &str) -> usize {
        let ssds = self.ssds.lock().unwrap_or_else(PoisonError::into_inner);
        ssds.get(name)
            .map_or(0, |ssd| ssd.shape().slots as usize - ssd.free_slots())
    }

    /// What the cluster is like.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Names of all nodes, running or not.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.shape.nodes).map(Self::name)
    }

    /// The bug planted, if any.
    pub(crate) fn plant(&self) -> Option<Plant> {
        self.plant
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
