//! Nodes over in-memory ports: what an engine sees when things go well, and when they do not.

mod fetching;

mod near;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, NamespaceId, Tier};
use flexkv_ports::conformance::{self, CacheUnderTest};
use flexkv_ports::{
    BlockTier, Faults, FaultyTransport, Filled, HeapHub, HeapStagedTier, HeapStore, HeapTier,
    HeapTransport, KvCache, LoadLimits, LoadStatus, Loaded, Suspect, Ticket, TierShape,
    TransportFaults, suspects,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use self::near::Near;
use super::*;

pub(crate) const BLOCK_BYTES: usize = 64;
const NAMESPACE: NamespaceId = NamespaceId::from_u128(5);

/// Nodes that share a store and a network.
pub(crate) struct World {
    store: HeapStore,
    pub(crate) hub: HeapHub,
}

pub(crate) struct TestNode {
    pub(crate) node: Arc<Node>,
    pub(crate) tier: Arc<HeapTier>,
    faults: Faults,
    metrics: Snapshotter,
    /// Counters so far; a snapshot of the recorder has only what came since the last one.
    counted: Mutex<BTreeMap<(String, Vec<String>), u64>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            store: HeapStore::new(),
            hub: HeapHub::new(),
        }
    }

    pub(crate) fn node(&self, name: &str, slots: u32) -> TestNode {
        self.node_with(name, slots, Spec::default())
    }

    /// A node that prefers `near`, which stages nothing, and how many blocks it asked of it.
    pub(crate) fn with_near(&self, name: &str, slots: u32) -> (TestNode, impl Fn() -> usize) {
        let near = Arc::new(Near {
            inner: HeapTransport::new(self.hub.clone()),
            asked: AtomicUsize::new(0),
        });
        let spec = Spec {
            near: Some(near.clone()),
            ..Spec::default()
        };
        let started = self.node_with(name, slots, spec);
        (started, move || near.asked.load(Ordering::Relaxed))
    }

    /// A node with an SSD.
    pub(crate) fn staged(
        &self,
        name: &str,
        slots: u32,
        ssd: &HeapStagedTier,
        admission: Admission,
    ) -> TestNode {
        self.over(name, slots, Arc::new(ssd.clone()), admission)
    }

    /// A node with any staged tier.
    pub(crate) fn over(
        &self,
        name: &str,
        slots: u32,
        staged: Arc<dyn StagedTier>,
        admission: Admission,
    ) -> TestNode {
        let spec = Spec {
            staged: Some(staged),
            admission,
            ..Spec::default()
        };
        let started = self.node_with(name, slots, spec);
        let stager: std::sync::Weak<Node> = Arc::downgrade(&started.node);
        self.hub.register_stager(name, stager);
        started
    }

    fn node_with(&self, name: &str, slots: u32, spec: Spec) -> TestNode {
        let shape = TierShape {
            tier: Tier::Host,
            slots,
            block_bytes: spec.block_bytes,
        };
        let tier = Arc::new(HeapTier::new(shape));
        let (tell, told) = suspects();
        let endpoint = self.hub.register(name, tier.clone());
        self.hub.register_suspects(name, tell);
        let faults = Faults::new(1);
        let transport = FaultyTransport::new(HeapTransport::new(self.hub.clone()), faults.clone());
        let config = NodeConfig {
            endpoints: vec![endpoint.clone(), endpoint.replace("mem:", "near:")],
            locality: spec.locality.to_owned(),
            admission: spec.admission,
            ..NodeConfig::new(name.parse().expect("a name"), NAMESPACE)
        };
        let seed = name.bytes().map(u64::from).sum();
        let near = spec.near.map(|near| near as Arc<dyn Transport>);
        let far: Arc<dyn Transport> = Arc::new(transport);
        let ports = NodePorts {
            tier: tier.clone(),
            staged: spec.staged,
            store: Some(Arc::new(self.store.clone())),
            transports: near.into_iter().chain([far]).collect(),
            rng: fastrand::Rng::with_seed(seed),
        };
        let recorder = DebuggingRecorder::new();
        let metrics = recorder.snapshotter();
        let node = Node::start(config, ports, &recorder).expect("a valid configuration");
        node.heed(told);
        TestNode {
            node,
            tier,
            faults,
            metrics,
            counted: Mutex::default(),
        }
    }
}

/// What a node has that most have not.
struct Spec {
    block_bytes: usize,
    locality: &'static str,
    /// A transport that it prefers to the usual one.
    near: Option<Arc<Near>>,
    staged: Option<Arc<dyn StagedTier>>,
    admission: Admission,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            block_bytes: BLOCK_BYTES,
            locality: "",
            near: None,
            staged: None,
            admission: Admission::default(),
        }
    }
}

impl TestNode {
    pub(crate) async fn store(&self, keys: &[BlockKey], first: usize) {
        let grant = self.node.store(keys, first).await.expect("store");
        let mut filled = Vec::new();
        for (index, slot) in grant.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            slot.write(0, &content(keys[first + index], slot.len()));
            filled.push(Filled {
                index,
                checksum: slot.checksum(),
            });
        }
        self.node
            .commit(grant.ticket, &filled)
            .await
            .expect("commit");
        self.node.release(grant.ticket).await.expect("release");
    }

    /// Loads all of `keys` that exist and checks every byte.
    pub(crate) async fn load(&self, keys: &[BlockKey]) -> Loaded {
        let hit = self.node.match_prefix(keys).await.expect("match");
        self.node
            .load(hit.ticket, hit.blocks, Duration::from_secs(5).into())
            .await
            .expect("load");
        let loaded = self.node.wait(hit.ticket).await.expect("wait");
        for (key, block) in keys.iter().zip(&loaded.blocks) {
            assert_eq!(block.key, *key);
            assert_eq!(block.bytes.to_vec(), content(*key, block.bytes.len()));
        }
        self.node.release(hit.ticket).await.expect("release");
        loaded
    }

    pub(crate) async fn found(&self, keys: &[BlockKey]) -> usize {
        let hit = self.node.match_prefix(keys).await.expect("match");
        self.node.release(hit.ticket).await.expect("release");
        hit.blocks
    }

    /// Waits until this node finds `blocks` of `keys`.
    pub(crate) async fn sees(&self, keys: &[BlockKey], blocks: usize) {
        for _ in 0..300 {
            if self.found(keys).await == blocks {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("finds {} blocks, not {blocks}", self.found(keys).await);
    }

    /// Waits until this node knows `peers` peers.
    pub(crate) async fn knows(&self, peers: usize) {
        for _ in 0..300 {
            if self.node.peers() == peers {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("knows {} peers, not {peers}", self.node.peers());
    }

    /// Sum of a counter over all label sets that contain `label`; of all if that is empty.
    pub(crate) fn counter(&self, name: &str, label: &str) -> u64 {
        let mut counted = self.counted.lock().expect("no panic elsewhere");
        for (key, _, _, value) in self.metrics.snapshot().into_vec() {
            if let DebugValue::Counter(n) = value {
                let labels = key.key().labels().map(|l| l.value().to_owned()).collect();
                *counted
                    .entry((key.key().name().to_owned(), labels))
                    .or_default() += n;
            }
        }
        let of_interest = |labels: &[String]| label.is_empty() || labels.iter().any(|l| l == label);
        let hits = counted
            .iter()
            .filter(|((n, labels), _)| n == name && of_interest(labels));
        hits.map(|(_, n)| n).sum()
    }
}

pub(crate) fn keys(prompt: u64, count: u64) -> Vec<BlockKey> {
    let mix = |i: u64| {
        (u128::from(prompt) << 64)
            | u128::from((prompt * 1000 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    };
    (1..=count).map(|i| BlockKey::from_u128(mix(i))).collect()
}

fn content(key: BlockKey, bytes: usize) -> Vec<u8> {
    key.to_bytes().repeat(bytes / 16)
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_passes_the_cache_suite() {
    conformance::cache(async || {
        let tier = HeapTier::new(TierShape {
            tier: Tier::Host,
            slots: 6,
            block_bytes: BLOCK_BYTES,
        });
        let ports = NodePorts {
            tier: Arc::new(tier),
            staged: None,
            store: None,
            transports: Vec::new(),
            rng: fastrand::Rng::with_seed(1),
        };
        let config = NodeConfig::new("alone".parse().expect("a name"), NAMESPACE);
        let cache = Node::start(config, ports, &metrics::NoopRecorder).expect("valid");
        CacheUnderTest {
            cache,
            slots: 6,
            namespace: NAMESPACE,
            guard: Box::new(()),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn blocks_stored_at_one_node_are_loaded_at_another_and_become_replicas() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 8);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 8).await;
    let loaded = b.load(&prompt).await;
    assert_eq!((loaded.local, loaded.remote), (0, 8));
    let again = b.load(&prompt).await;
    assert_eq!((again.local, again.remote), (8, 0), "fetched blocks stay");
    assert_eq!(b.counter("flexkv_hit_blocks_total", "remote"), 8);
    assert_eq!(b.counter("flexkv_hit_blocks_total", "local"), 8);
    // The replica serves others when the first owner is gone.
    let c = world.node("c", 20);
    world.hub.unregister("a");
    drop(a);
    c.sees(&prompt, 8).await;
    c.knows(1).await;
    assert_eq!(c.load(&prompt).await.remote, 8);
}

#[tokio::test(start_paused = true)]
async fn one_answer_joins_a_local_head_with_parts_of_several_peers() {
    let world = World::new();
    let (a, b, c) = (
        world.node("a", 20),
        world.node("b", 20),
        world.node("c", 20),
    );
    let prompt = keys(1, 9);
    a.store(&prompt[..3], 0).await;
    b.store(&prompt[..6], 3).await;
    c.store(&prompt, 6).await;
    a.sees(&prompt, 9).await;
    let hit = a.node.match_prefix(&prompt).await.expect("match");
    assert_eq!((hit.blocks, hit.local), (9, 3));
    a.node.release(hit.ticket).await.expect("release");
    let loaded = a.load(&prompt).await;
    assert_eq!((loaded.local, loaded.remote), (3, 6));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_costs_its_blocks_only() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 6);
    a.store(&prompt, 0).await;
    b.store(&prompt[..2], 0).await;
    b.sees(&prompt, 6).await;
    b.faults.set_transport(TransportFaults {
        hang: 1.0,
        ..TransportFaults::default()
    });
    let loaded = b.load(&prompt).await;
    assert_eq!(
        (loaded.local, loaded.remote),
        (2, 0),
        "the verified head is kept"
    );
    assert_eq!(b.found(&prompt).await, 2, "the peer is left out at once");
    assert!(b.counter("flexkv_missed_blocks_total", "unreachable") > 0);
    b.faults.quiet();
    b.sees(&prompt, 6).await;
    assert_eq!(b.load(&prompt).await.remote, 4);
}

#[tokio::test(start_paused = true)]
async fn a_failed_part_comes_from_another_owner() {
    let world = World::new();
    let (a, b, c) = (
        world.node("a", 20),
        world.node("b", 20),
        world.node("c", 20),
    );
    let prompt = keys(1, 6);
    a.store(&prompt, 0).await;
    b.store(&prompt, 0).await;
    c.knows(2).await;
    c.sees(&prompt, 6).await;
    // Whichever of the two owners is asked first, it is cut off.
    c.faults.set_cut(&HeapHub::endpoint("a"), true);
    assert_eq!(c.load(&prompt).await.remote, 6);
    // By then the first one has been forgiven.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let other = keys(2, 6);
    a.store(&other, 0).await;
    b.store(&other, 0).await;
    c.sees(&other, 6).await;
    c.faults.quiet();
    c.faults.set_cut(&HeapHub::endpoint("b"), true);
    assert_eq!(c.load(&other).await.remote, 6);
}

#[tokio::test(start_paused = true)]
async fn corrupt_and_stale_answers_are_misses_with_a_reason() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 4);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 4).await;
    b.faults.set_transport(TransportFaults {
        corrupt: 1.0,
        ..TransportFaults::default()
    });
    assert!(b.load(&prompt).await.blocks.is_empty());
    assert_eq!(b.counter("flexkv_missed_blocks_total", "corrupt"), 1);
    assert_eq!(b.counter("flexkv_missed_blocks_total", "broken_prefix"), 3);
    b.faults.set_transport(TransportFaults {
        stale: 1.0,
        ..TransportFaults::default()
    });
    assert!(b.load(&prompt).await.blocks.is_empty());
    assert_eq!(b.counter("flexkv_missed_blocks_total", "stale"), 1);
    assert_eq!(b.tier.free_slots(), 20, "no slot leaks");
    b.faults.quiet();
    assert_eq!(
        b.load(&prompt).await.remote,
        4,
        "the peer itself is not blamed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bit_flip_in_local_memory_never_reaches_an_engine() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 4);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 4).await;
    assert_eq!(b.load(&prompt).await.remote, 4);
    let location = b.node.shared.core.find(&prompt[2..3])[0].expect("here");
    flip(&b.tier, location, prompt[2]);
    let loaded = b.load(&prompt).await;
    assert_eq!(
        (loaded.local, loaded.remote),
        (3, 1),
        "dropped and fetched again"
    );
    assert_eq!(b.counter("flexkv_local_corrupt_blocks_total", ""), 1);
}

pub(crate) fn flip(tier: &HeapTier, location: Location, key: BlockKey) {
    let slot = tier.pin(location, key).expect("there");
    let mut byte = [0];
    slot.bytes().read(9, &mut byte);
    slot.bytes().write(9, &[byte[0] ^ 4]);
}

#[tokio::test(start_paused = true)]
async fn eviction_is_published() {
    let world = World::new();
    let (a, b) = (world.node("a", 8), world.node("b", 8));
    let (old, new) = (keys(1, 5), keys(2, 6));
    a.store(&old, 0).await;
    b.sees(&old, 5).await;
    a.store(&new, 0).await;
    b.sees(&new, 6).await;
    b.sees(&old, 2).await;
    assert_eq!(
        a.counter("flexkv_evicted_blocks_total", ""),
        3,
        "the tail went first"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_everything_hides_nothing_and_is_filled_again() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 5);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 5).await;
    world.store.flush();
    for _ in 0..100 {
        assert_eq!(b.found(&prompt).await, 5, "served from the snapshot");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let c = world.node("c", 20);
    c.sees(&prompt, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_is_forgotten_sooner_than_one_that_dies() {
    let world = World::new();
    let (a, b, c) = (
        world.node("a", 20),
        world.node("b", 20),
        world.node("c", 20),
    );
    c.knows(2).await;
    a.node.stop().await;
    let stopped = Instant::now();
    c.knows(1).await;
    let stopped = stopped.elapsed();
    drop(b);
    let died = Instant::now();
    c.knows(0).await;
    assert!(
        stopped < died.elapsed(),
        "{stopped:?} against {:?}",
        died.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn releasing_a_running_load_gives_everything_back() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 6);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 6).await;
    b.faults.set_transport(TransportFaults {
        hang: 1.0,
        ..TransportFaults::default()
    });
    let hit = b.node.match_prefix(&prompt).await.expect("match");
    b.node
        .load(hit.ticket, 6, Duration::from_secs(60).into())
        .await
        .expect("load");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(matches!(
        b.node.poll(hit.ticket).await,
        Ok(LoadStatus::Pending)
    ));
    assert_eq!(b.tier.free_slots(), 14);
    b.node.release(hit.ticket).await.expect("release");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!((b.tier.free_slots(), b.node.tickets()), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn two_nodes_with_one_name_are_two_owners() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    // Same name, other endpoint and incarnation.
    let shape = TierShape {
        tier: Tier::Host,
        slots: 20,
        block_bytes: BLOCK_BYTES,
    };
    let tier = Arc::new(HeapTier::new(shape));
    let config = NodeConfig {
        endpoints: vec![world.hub.register("twin", tier.clone())],
        ..NodeConfig::new("a".parse().expect("a name"), NAMESPACE)
    };
    let ports = NodePorts {
        tier,
        staged: None,
        store: Some(Arc::new(world.store.clone())),
        transports: vec![Arc::new(HeapTransport::new(world.hub.clone()))],
        rng: fastrand::Rng::with_seed(99),
    };
    let twin = Node::start(config, ports, &metrics::NoopRecorder).expect("valid");
    b.knows(2).await;
    let prompt = keys(1, 3);
    let grant = twin.store(&prompt, 0).await.expect("store");
    let filled = |(index, slot): (usize, &Option<flexkv_ports::MemorySlice>)| {
        let bytes = content(prompt[index], BLOCK_BYTES);
        slot.as_ref().expect("granted").write(0, &bytes);
        Filled {
            index,
            checksum: Checksum::of(&bytes),
        }
    };
    let filled: Vec<Filled> = grant.slots.iter().enumerate().map(filled).collect();
    twin.commit(grant.ticket, &filled).await.expect("commit");
    b.sees(&prompt, 3).await;
    a.sees(&prompt, 3).await;
    assert_eq!(a.load(&prompt).await.remote, 3);
}

#[tokio::test(start_paused = true)]
async fn what_the_best_endpoint_does_not_reach_comes_through_the_next_one() {
    let world = World::new();
    let near = Arc::new(Near {
        inner: HeapTransport::new(world.hub.clone()),
        asked: AtomicUsize::new(0),
    });
    let a = world.node("a", 16);
    let spec = Spec {
        near: Some(near.clone()),
        ..Spec::default()
    };
    let b = world.node_with("b", 16, spec);
    let keys: Vec<BlockKey> = (1..=6).map(BlockKey::from_u128).collect();
    a.store(&keys, 0).await;
    b.sees(&keys, 6).await;
    assert_eq!(b.load(&keys).await.blocks.len(), 6);
    assert_eq!(near.asked.load(Ordering::Relaxed), 6, "asked first, once");
    assert_eq!(b.counter("flexkv_fetch_failures_total", ""), 0);
}
