//! Nodes in networks of their own whose cables are pulled in the middle of a transfer, or are narrow;
//! owners that stop, die, or are no longer wanted. Loads end, what they took comes back, others are
//! asked, and once all is well again so are the nodes.

use std::process::Stdio;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_engine::EngineClient;
use flexkv_ports::{Filled, KvCache as _, Loaded, Ticket};
use flexkv_redis::local::LocalRedis;
use rustix::process::Signal;
use tokio::time::timeout;

use crate::cables::{HUB, Hub, Place, has_own_network};
use crate::harness::{Home, PATIENCE, signal, until};
use crate::node::{NodeProcess, keys};

const BLOCK_BYTES: usize = 64 << 10;
const SLOTS: usize = 192;
/// Blocks of a transfer, which takes some seconds through a narrow cable.
const BLOCKS: usize = 128;
const NARROW: u32 = 16;
/// Far longer than any load here needs.
const LONG: Duration = Duration::from_secs(60);

/// A store that all nodes see, and where nodes are put.
struct World {
    home: Home,
    hub: Hub,
    redis: LocalRedis,
}

/// A node in a place of its own, with an engine.
struct Host {
    name: &'static str,
    place: Place,
    node: NodeProcess,
    engine: EngineClient,
}

impl World {
    async fn new() -> Self {
        let hub = Hub::new();
        let open = "bind 0.0.0.0\nprotected-mode no\n";
        Self {
            home: Home::new(),
            hub,
            redis: LocalRedis::start_configured(None, open).await.unwrap(),
        }
    }

    /// Starts these nodes, and waits until all see each other.
    async fn hosts<const N: usize>(&self, names: [&'static str; N]) -> [Host; N] {
        let places = std::array::from_fn::<_, N, _>(|n| self.hub.place(n as u8 + 1));
        let mut hosts = Vec::new();
        for (name, place) in names.into_iter().zip(places) {
            let node = self.start(name, &place);
            let engine = node.attach().await;
            hosts.push(Host {
                name,
                place,
                node,
                engine,
            });
        }
        hosts.iter().for_each(|host| host.node.sees(N as u64 - 1));
        hosts.try_into().ok().unwrap()
    }

    /// Starts a node, always at the same address.
    fn start(&self, name: &str, place: &Place) -> NodeProcess {
        let socket = self.home.path(&format!("{name}-engines/node.sock"));
        let text = format!(
            "name = '{name}'\ncluster = 'it'\nsecret = 'it'\n\
             memory.slots = {SLOTS}\nmemory.populate = false\n\
             network.listen = '{}:7400'\nmetrics.listen = '{}:7401'\n\
             redis.url = 'redis://{HUB}:{}'\n\
             timing.members_interval = '100 ms'\ntiming.lease = '2 s'\n\
             engine.socket = '{}'\n\
             [namespace]\nid = '000102030405060708090a0b0c0d0e0f'\nblock_bytes = {BLOCK_BYTES}\n",
            place.data(),
            place.store(),
            self.redis.port(),
            socket.display()
        );
        self.home.write(&format!("{name}.toml"), &text);
        let line = format!("node --json --until-stdin-closes --config {name}.toml");
        let mut command = place.command(&self.home.command(&line));
        NodeProcess::run(command.stdin(Stdio::piped()), name)
    }
}

/// The bytes of a block.
fn content(key: &BlockKey) -> Vec<u8> {
    let seed = key.fingerprint();
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(..))
        .take(BLOCK_BYTES)
        .collect()
}

impl Host {
    async fn store(&self, keys: &[BlockKey]) {
        let grant = self.engine.store(keys, 0).await.unwrap();
        let mut filled = Vec::new();
        for (index, slot) in grant.slots.iter().enumerate() {
            let bytes = content(&keys[index]);
            slot.as_ref().unwrap().write(0, &bytes);
            let checksum = Checksum::of(&bytes);
            filled.push(Filled { index, checksum });
        }
        self.engine.commit(grant.ticket, &filled).await.unwrap();
        self.engine.release(grant.ticket).await.unwrap();
    }

    /// Waits until the node knows where all of `keys` are.
    async fn knows(&self, keys: &[BlockKey]) {
        until("all blocks are known", async || {
            let hit = self.engine.match_prefix(keys).await.unwrap();
            self.engine.release(hit.ticket).await.unwrap();
            hit.blocks == keys.len()
        })
        .await;
    }

    /// Waits until the node knows of so many replicas.
    async fn knows_replicas(&self, count: usize) {
        until("all replicas are known", async || {
            self.metric("flexkv_known_replicas").await == count as f64
        })
        .await;
    }

    /// Begins to load what is known of `keys`.
    async fn begin(&self, keys: &[BlockKey], deadline: Duration) -> Ticket {
        let hit = self.engine.match_prefix(keys).await.unwrap();
        let limits = deadline.into();
        let begun = self.engine.load(hit.ticket, hit.blocks, limits).await;
        begun.unwrap();
        hit.ticket
    }

    /// Waits for the end of a load; gives how many leading blocks of `keys` came. Each is what was
    /// stored.
    async fn end(&self, ticket: Ticket, keys: &[BlockKey]) -> usize {
        let ended = timeout(PATIENCE, self.engine.wait(ticket)).await;
        let Loaded { blocks, .. } = ended.expect("a load ends").unwrap();
        for (block, key) in blocks.iter().zip(keys) {
            assert_eq!(block.key, *key);
            assert!(block.bytes.to_vec() == content(key), "bytes of {key}");
        }
        self.engine.release(ticket).await.unwrap();
        blocks.len()
    }

    /// How many leading blocks of `keys` come.
    async fn load(&self, keys: &[BlockKey], deadline: Duration) -> usize {
        let ticket = self.begin(keys, deadline).await;
        self.end(ticket, keys).await
    }

    /// Loads until all of it comes.
    async fn eventually_loads(&self, keys: &[BlockKey]) {
        until("all blocks come", async || {
            self.load(keys, LONG).await == keys.len()
        })
        .await;
    }

    /// The metrics that begin so.
    async fn lines(&self, start: &str) -> Vec<String> {
        let metrics = self.node.metrics().await;
        let lines = metrics.lines().filter(|line| line.starts_with(start));
        lines.map(str::to_owned).collect()
    }

    /// Their sum.
    async fn metric(&self, start: &str) -> f64 {
        let lines = self.lines(start).await;
        let value = |line: &String| line.rsplit(' ').next()?.parse::<f64>().ok();
        lines.iter().filter_map(value).sum()
    }

    async fn fetched_bytes(&self) -> f64 {
        self.metric("flexkv_fetched_bytes_total").await
    }

    /// Waits until blocks come from peers.
    async fn is_fetching(&self) {
        let before = self.fetched_bytes().await;
        until("blocks come", async || self.fetched_bytes().await > before).await;
    }

    /// Waits until nothing is lent to anyone: no slot is being filled, none pinned, no ticket open.
    async fn has_everything_back(&self) {
        for (metric, labels) in [
            ("slots", ",use=\"filling\""),
            ("pinned_slots", ""),
            ("tickets", ""),
        ] {
            let name = format!("flexkv_{metric}{{node=\"{}\"{labels}}}", self.name);
            until(&format!("{name} is 0"), async || {
                self.node.metrics().await.contains(&format!("{name} 0\n"))
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_partition_in_mid_transfer_leaves_the_leading_part_and_heals() {
    if !has_own_network("partition::a_partition_in_mid_transfer_leaves_the_leading_part_and_heals")
    {
        return;
    }
    let world = World::new().await;
    let [owner, reader] = world.hosts(["owner", "reader"]).await;
    let keys = keys(1, BLOCKS as u128);
    owner.store(&keys).await;
    reader.knows(&keys).await;
    owner.place.narrow(NARROW);
    for cut_off in [&owner, &reader] {
        let before = reader.fetched_bytes().await;
        let ticket = reader.begin(&keys, Duration::from_secs(5)).await;
        until("blocks come", async || {
            reader.fetched_bytes().await > before
        })
        .await;
        cut_off.place.pull("data");
        let came = reader.end(ticket, &keys).await;
        assert!((1..BLOCKS).contains(&came), "{came} of {BLOCKS} blocks");
        reader.has_everything_back().await;
        // The store is there all the time, so the node still knows who should have the rest.
        reader.knows(&keys).await;
        assert!(reader.load(&keys, Duration::from_secs(2)).await < BLOCKS);
        cut_off.place.plug("data");
        owner.has_everything_back().await;
        reader.knows(&keys).await;
    }
    reader.eventually_loads(&keys).await;
    reader.has_everything_back().await;
    owner.has_everything_back().await;
}

#[tokio::test]
async fn what_a_partition_keeps_back_comes_from_another_owner() {
    if !has_own_network("partition::what_a_partition_keeps_back_comes_from_another_owner") {
        return;
    }
    let world = World::new().await;
    let [lost, other, reader] = world.hosts(["lost", "other", "reader"]).await;
    let keys = keys(1, BLOCKS as u128);
    for owner in [&lost, &other] {
        owner.store(&keys).await;
        owner.place.narrow(NARROW);
    }
    reader.knows(&keys).await;
    reader.knows_replicas(2 * BLOCKS).await;
    let ticket = reader.begin(&keys, LONG).await;
    reader.is_fetching().await;
    lost.place.pull("data");
    assert_eq!(reader.end(ticket, &keys).await, BLOCKS);
    assert!(lost.metric("flexkv_served_blocks_total").await < BLOCKS as f64);
    reader.has_everything_back().await;
    lost.has_everything_back().await;
}

#[tokio::test]
async fn a_node_that_is_cut_off_from_all_serves_its_engines_and_comes_back() {
    if !has_own_network(
        "partition::a_node_that_is_cut_off_from_all_serves_its_engines_and_comes_back",
    ) {
        return;
    }
    let world = World::new().await;
    let [alone, other] = world.hosts(["alone", "other"]).await;
    let (its, theirs) = (keys(1, 16), keys(100, 16));
    alone.store(&its).await;
    other.store(&theirs).await;
    alone.knows(&theirs).await;
    other.knows(&its).await;
    for switch in ["data", "store"] {
        alone.place.pull(switch);
    }
    other.node.sees(0);
    assert_eq!(alone.load(&its, LONG).await, 16, "its own blocks");
    let unseen = keys(200, 16);
    alone.store(&unseen).await;
    assert_eq!(alone.load(&theirs, Duration::from_secs(2)).await, 0);
    for switch in ["data", "store"] {
        alone.place.plug(switch);
    }
    other.node.sees(1);
    other.knows(&unseen).await;
    other.eventually_loads(&unseen).await;
    other.eventually_loads(&its).await;
    alone.knows(&theirs).await;
    alone.eventually_loads(&theirs).await;
    alone.has_everything_back().await;
    other.has_everything_back().await;
}

#[tokio::test]
async fn an_owner_at_a_hundredth_of_the_speed_gives_little_and_holds_nobody_up() {
    if !has_own_network(
        "partition::an_owner_at_a_hundredth_of_the_speed_gives_little_and_holds_nobody_up",
    ) {
        return;
    }
    let world = World::new().await;
    let [slow, fast, reader] = world.hosts(["slow", "fast", "reader"]).await;
    slow.place.narrow(4);
    fast.place.narrow(400);
    let keys = keys(1, BLOCKS as u128);
    slow.store(&keys).await;
    fast.store(&keys).await;
    reader.knows(&keys).await;
    reader.knows_replicas(2 * BLOCKS).await;
    let came = reader.load(&keys, LONG).await;
    let missed = reader.lines("flexkv_missed_blocks_total").await;
    assert_eq!(came, BLOCKS, "{missed:?}");
    let served = slow.metric("flexkv_served_blocks_total").await;
    assert!(
        served < BLOCKS as f64 / 8.0,
        "{served} blocks of the slow one"
    );
    reader.has_everything_back().await;
}

#[tokio::test]
async fn a_load_that_is_given_up_takes_nothing_with_it() {
    if !has_own_network("partition::a_load_that_is_given_up_takes_nothing_with_it") {
        return;
    }
    let world = World::new().await;
    let [owner, reader] = world.hosts(["owner", "reader"]).await;
    let keys = keys(1, BLOCKS as u128);
    owner.store(&keys).await;
    reader.knows(&keys).await;
    owner.place.narrow(NARROW);
    // Given up by the engine, and with the engine.
    let ticket = reader.begin(&keys, LONG).await;
    reader.is_fetching().await;
    reader.engine.release(ticket).await.unwrap();
    reader.has_everything_back().await;
    owner.has_everything_back().await;
    let other = reader.node.attach().await;
    let hit = other.match_prefix(&keys).await.unwrap();
    other
        .load(hit.ticket, hit.blocks, LONG.into())
        .await
        .unwrap();
    reader.is_fetching().await;
    drop(other);
    reader.has_everything_back().await;
    owner.has_everything_back().await;
    let held = reader.metric("flexkv_resident_blocks").await;
    assert!(held < BLOCKS as f64, "{held} blocks came all the same");
    assert_eq!(reader.load(&keys, LONG).await, BLOCKS);
}

#[tokio::test]
async fn a_load_ends_at_its_deadline_with_what_has_come() {
    if !has_own_network("partition::a_load_ends_at_its_deadline_with_what_has_come") {
        return;
    }
    let world = World::new().await;
    let [owner, reader] = world.hosts(["owner", "reader"]).await;
    let keys = keys(1, BLOCKS as u128);
    owner.store(&keys).await;
    reader.knows(&keys).await;
    // All of it would take half a minute. The owner answers all the time.
    owner.place.narrow(2);
    let came = reader.load(&keys, Duration::from_secs(3)).await;
    assert!((1..BLOCKS).contains(&came), "{came} of {BLOCKS} blocks");
    reader.has_everything_back().await;
    owner.has_everything_back().await;
}

#[tokio::test]
async fn an_owner_that_is_stopped_or_killed_in_mid_transfer_is_missed_and_found_again() {
    if !has_own_network(
        "partition::an_owner_that_is_stopped_or_killed_in_mid_transfer_is_missed_and_found_again",
    ) {
        return;
    }
    let world = World::new().await;
    let [mut owner, reader] = world.hosts(["owner", "reader"]).await;
    let keys = keys(1, BLOCKS as u128);
    owner.store(&keys).await;
    reader.knows(&keys).await;
    owner.place.narrow(NARROW);
    let ticket = reader.begin(&keys, Duration::from_secs(5)).await;
    reader.is_fetching().await;
    signal(owner.node.running.pid(), Signal::STOP);
    let came = reader.end(ticket, &keys).await;
    assert!((1..BLOCKS).contains(&came), "{came} of {BLOCKS} blocks");
    reader.has_everything_back().await;
    signal(owner.node.running.pid(), Signal::CONT);
    reader.knows(&keys).await;
    let ticket = reader.begin(&keys, LONG).await;
    reader.is_fetching().await;
    signal(owner.node.running.pid(), Signal::KILL);
    let came = reader.end(ticket, &keys).await;
    assert!((1..BLOCKS).contains(&came), "{came} of {BLOCKS} blocks");
    reader.has_everything_back().await;
    // Its successor at the same address holds other blocks, and is another owner.
    owner.node = world.start("owner", &owner.place);
    owner.engine = owner.node.attach().await;
    let later = self::keys(1000, 32);
    owner.store(&later).await;
    reader.knows(&later).await;
    reader.eventually_loads(&later).await;
    reader.has_everything_back().await;
    owner.has_everything_back().await;
}
