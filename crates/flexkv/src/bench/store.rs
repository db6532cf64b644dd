//! The metadata store on a real server: what it costs to publish and to come new, how soon others
//! see a change, what a block weighs there and what an idle node asks.
//!
//! Publisher and newcomer are measured through the store's adapter and the index alone; visibility
//! and idle cost with node processes.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use flexkv_block::{BlockKey, Checksum, Generation, Location, SlotId, Tier};
use flexkv_index::log::{Batch, Entry, EntryPlace};
use flexkv_index::{Follower, FollowerConfig, NodeId, NodeInfo, NodeRecord, PolicyKind};
use flexkv_ports::{Filled, KvCache, LogCursor, LogEntry, MetadataStore};
use flexkv_redis::RedisStore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use super::{Better, Row};
use crate::cluster::{ClusterSpec, Deployment, Metadata, ProcessCluster, connect};
use crate::config::RedisSetting;
use crate::report::Times;

/// Blocks of a prompt.
const PROMPT_BLOCKS: usize = 2048;
/// Entries in one append, and in one reading of a log.
const ENTRIES: usize = 64;
/// How often what takes long is measured.
const ROUNDS: usize = 5;
const LEASE: Duration = Duration::from_secs(600);
const BLOCK_TOKENS: u32 = 16;
const BLOCK_BYTES: u64 = 4096;

const NODES: usize = 4;
/// Blocks that a node process keeps.
const SLOTS: u32 = 20_000;
/// Each node stores this many blocks every [`STORE_EVERY`].
const STORE_BLOCKS: usize = 16;
const STORE_EVERY: Duration = Duration::from_millis(20);
/// Every so many stores, the other nodes are watched until they see it.
const WATCHED: usize = 10;
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// As nodes have it by default.
const MEMBERS_INTERVAL: Duration = Duration::from_secs(2);
/// Nodes that stored something lately are not idle yet.
const SETTLED_AFTER: Duration = Duration::from_secs(12);

const ORIGINAL: &str = "FlexKV (original)";

/// What to measure.
pub struct Plan {
    /// The server.
    pub redis: RedisSetting,
    /// Blocks that one node publishes.
    pub blocks: usize,
    /// How long nodes are watched, once under load and once idle.
    pub watch: Duration,
    /// The `flexkv` command: a program and its first arguments.
    pub program: Vec<OsString>,
}

/// Measures the store.
pub async fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut rows = published(plan).await?;
    rows.extend(watched(plan).await?);
    Ok(rows)
}

/// One node publishes everything it has; another comes new and reads it.
async fn published(plan: &Plan) -> Result<Vec<Row>> {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES)?;
    let (mut publish, mut newcomer) = (Vec::new(), Vec::new());
    let mut bytes = 0.0;
    for round in 0..ROUNDS {
        let store = connect(&plan.redis, &deployment).await?;
        let owner = Owner::new(&deployment, round as u64)?;
        let runs = runs(plan.blocks, round as u64);
        let before = used_memory(&store).await?;
        let began = Instant::now();
        owner.publish(&store, &runs).await?;
        publish.push(began.elapsed());
        bytes = (used_memory(&store).await? - before) / plan.blocks as f64;
        newcomer.push(come_new(plan, &deployment, &owner).await?);
        store
            .leave(&owner.info.node().to_string(), &owner.log())
            .await?;
    }
    let publish = median(publish).as_secs_f64() * 1e6 / plan.blocks as f64;
    let seconds = "s";
    Ok(vec![
        Row::new("publish, per block", publish, "us", Better::Lower)
            .target(0.5)
            .peer(ORIGINAL, 14.0),
        Row::new(
            "a newcomer's snapshot",
            median(newcomer).as_secs_f64(),
            seconds,
            Better::Lower,
        )
        .target(1.2)
        .peer(ORIGINAL, 14.7),
        Row::new("memory in Redis, per block", bytes, "B", Better::Lower)
            .target(20.0)
            .peer(ORIGINAL, 170.0),
    ])
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Fingerprints of prompts, `blocks` in all.
fn runs(blocks: usize, seed: u64) -> Vec<Vec<u64>> {
    let mut rng = Rng::with_seed(seed);
    let mut left = blocks;
    let mut runs = Vec::new();
    while left > 0 {
        let run = left.min(PROMPT_BLOCKS);
        runs.push((0..run).map(|_| rng.u64(..)).collect());
        left -= run;
    }
    runs
}

/// A node that holds blocks only on paper.
struct Owner {
    info: NodeInfo,
}

impl Owner {
    fn new(deployment: &Deployment, number: u64) -> Result<Self> {
        let node = NodeId {
            name: format!("bench-{number}").parse()?,
            incarnation: Rng::new().u64(..),
        };
        let bytes = u32::try_from(deployment.block_bytes)?;
        let endpoints = vec![format!("tcp://192.0.2.1:{}", number + 1)];
        let info = NodeInfo::new(node, deployment.namespace, bytes, String::new(), endpoints)?;
        Ok(Self { info })
    }

    fn log(&self) -> String {
        self.info.node().log(1)
    }

    /// Encodes and appends a checkpoint of `runs`, and announces it.
    async fn publish(&self, store: &RedisStore, runs: &[Vec<u64>]) -> Result<()> {
        let mut entries = Entries {
            owner: self,
            batch: Batch::default(),
            ready: Vec::new(),
            sequence: 1,
        };
        let mut slot = 0;
        for run in runs {
            let (mut parent, mut rest) = (None, &run[..]);
            while !rest.is_empty() {
                if entries.batch.room() == 0 {
                    entries.seal();
                    entries.append(store, ENTRIES).await?;
                }
                let n = rest.len().min(entries.batch.room());
                let locations: Vec<_> = (slot..slot + n as u32).map(at).collect();
                entries.batch.add(parent, &rest[..n], &locations);
                slot += n as u32;
                parent = Some(rest[n - 1]);
                rest = &rest[n..];
            }
        }
        entries.seal();
        entries.push(&Entry::CheckpointEnd);
        entries.append(store, 1).await?;
        let record = NodeRecord {
            info: self.info.clone(),
            epoch: 1,
            log_start: 1,
            rotated: false,
        };
        let name = self.info.node().to_string();
        store
            .renew(&name, record.encode(), &self.log(), LEASE)
            .await?;
        Ok(())
    }
}

/// Entries on their way.
struct Entries<'a> {
    owner: &'a Owner,
    batch: Batch,
    ready: Vec<LogEntry>,
    sequence: u64,
}

impl Entries<'_> {
    fn seal(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.push(&Entry::Checkpoint(batch));
    }

    fn push(&mut self, entry: &Entry) {
        let sequence = self.sequence;
        let incarnation = self.owner.info.node().incarnation;
        let bytes = entry.encode(EntryPlace {
            incarnation,
            sequence,
        });
        self.ready.push(LogEntry { sequence, bytes });
        self.sequence += 1;
    }

    /// Appends what is ready if it is at least so much.
    async fn append(&mut self, store: &RedisStore, at_least: usize) -> Result<()> {
        if self.ready.len() >= at_least {
            let entries = std::mem::take(&mut self.ready);
            let create = entries.first().is_some_and(|entry| entry.sequence == 1);
            let log = self.owner.log();
            store.append(&log, &entries, create, LEASE).await?;
        }
        Ok(())
    }
}

fn at(slot: u32) -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    }
}

/// How long it takes from nothing, not even a connection, to knowing all blocks of `owner`.
async fn come_new(plan: &Plan, deployment: &Deployment, owner: &Owner) -> Result<Duration> {
    let began = Instant::now();
    let store = connect(&plan.redis, deployment).await?;
    let own = Owner::new(deployment, 1000)?.info;
    let mut follower = Follower::new(FollowerConfig::default(), own);
    let (mut writer, snapshot) = flexkv_index::snapshot();
    let members = store.members().await?;
    let members: Vec<_> = members.into_iter().map(|m| (m.name, m.record)).collect();
    follower.members(began.elapsed(), &members, &mut writer);
    while follower.loading() > 0 {
        let cursors = follower.cursors().into_iter();
        let cursors: Vec<_> = cursors
            .map(|(log, after)| LogCursor { log, after })
            .collect();
        for read in store.read(&cursors, ENTRIES, LEASE).await? {
            let entries = read.entries.into_iter().map(|e| (e.sequence, e.bytes));
            let entries: Vec<_> = entries.collect();
            follower.entries(began.elapsed(), &read.log, &entries, &mut writer);
        }
    }
    let took = began.elapsed();
    let known = snapshot.stats().blocks;
    if known != plan.blocks {
        bail!("the newcomer knows {known} blocks of {}", owner.info.node());
    }
    Ok(took)
}

async fn used_memory(store: &RedisStore) -> Result<f64> {
    let info = store.server_info("memory").await?;
    let line = info.lines().find_map(|l| l.strip_prefix("used_memory:"));
    let used = line.and_then(|bytes| bytes.trim().parse().ok());
    used.context("the server does not say how much memory it uses")
}

/// Node processes under load, and then idle.
async fn watched(plan: &Plan) -> Result<Vec<Row>> {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES)?;
    let spec = ClusterSpec {
        nodes: NODES,
        slots: SLOTS,
        policy: PolicyKind::default(),
        ssd: None,
        metadata: Metadata::Redis(plan.redis.clone()),
        deployment: deployment.clone(),
        members_interval: MEMBERS_INTERVAL,
    };
    let cluster = ProcessCluster::start(&plan.program, &spec).await?;
    let caches = cluster.caches().await?;
    let times = load(plan, &caches, deployment.block_bytes).await?;
    drop(caches);
    sleep(SETTLED_AFTER).await;
    let store = connect(&plan.redis, &deployment).await?;
    let before = calls(&store).await?;
    let began = Instant::now();
    sleep(plan.watch).await;
    let asked = calls(&store).await? - before;
    let rate = asked / began.elapsed().as_secs_f64() / NODES as f64;
    cluster.stop().await;
    let visible = |quantile: f64| times.micros(quantile) / 1000.0;
    Ok(vec![
        Row::new(
            "stored to visible on others, p50",
            visible(0.5),
            "ms",
            Better::Lower,
        ),
        Row::new(
            "stored to visible on others, p99",
            visible(0.99),
            "ms",
            Better::Lower,
        )
        .target(20.0),
        Row::new("commands of an idle node", rate, "1/s", Better::Lower).target(2.0),
    ])
}

/// All nodes store; now and then one store is followed until the other nodes see it.
async fn load(plan: &Plan, caches: &[Arc<dyn KvCache>], block_bytes: usize) -> Result<Times> {
    let mut nodes = JoinSet::new();
    for number in 0..caches.len() {
        let mut caches = caches.to_vec();
        let own = caches.swap_remove(number);
        nodes.spawn(work(own, caches, block_bytes, plan.watch));
    }
    let mut times = Times::default();
    while let Some(seen) = nodes.join_next().await {
        for time in seen.context("a node's load ended")?? {
            times.add(time);
        }
    }
    Ok(times)
}

async fn work(
    own: Arc<dyn KvCache>,
    others: Vec<Arc<dyn KvCache>>,
    block_bytes: usize,
    long: Duration,
) -> Result<Vec<Duration>> {
    let mut rng = Rng::new();
    let mut ticks = interval(STORE_EVERY);
    let mut watchers = JoinSet::new();
    let began = Instant::now();
    for round in 0.. {
        if began.elapsed() >= long {
            break;
        }
        ticks.tick().await;
        let keys: Vec<_> = (0..STORE_BLOCKS)
            .map(|_| BlockKey::from_u128(rng.u128(..)))
            .collect();
        store(&*own, &keys, block_bytes).await?;
        if round % WATCHED == 0 {
            for other in &others {
                watchers.spawn(until_visible(other.clone(), keys.clone(), Instant::now()));
            }
        }
    }
    let mut seen = Vec::new();
    while let Some(time) = watchers.join_next().await {
        seen.push(time.context("a watcher ended")??);
    }
    Ok(seen)
}

/// Stores blocks of zeros.
async fn store(cache: &dyn KvCache, keys: &[BlockKey], block_bytes: usize) -> Result<()> {
    let grant = cache.store(keys, 0).await?;
    let zeros = vec![0; block_bytes];
    let checksum = Checksum::of(&zeros);
    let mut filled = Vec::new();
    for (index, slot) in grant.slots.iter().enumerate() {
        if let Some(slot) = slot {
            slot.write(0, &zeros);
            filled.push(Filled { index, checksum });
        }
    }
    cache.commit(grant.ticket, &filled).await?;
    Ok(cache.release(grant.ticket).await?)
}

async fn until_visible(
    cache: Arc<dyn KvCache>,
    keys: Vec<BlockKey>,
    stored: Instant,
) -> Result<Duration> {
    loop {
        let hit = cache.match_prefix(&keys).await?;
        cache.release(hit.ticket).await?;
        if hit.blocks == keys.len() {
            return Ok(stored.elapsed());
        }
        if stored.elapsed() > SETTLED_AFTER {
            bail!("a node does not see what another stored");
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Calls of commands that the server has counted, those in scripts included and questions about
/// the server left out.
async fn calls(store: &RedisStore) -> Result<f64> {
    let info = store.server_info("commandstats").await?;
    let mut sum = 0.0;
    for line in info.lines() {
        let Some(line) = line.strip_prefix("cmdstat_") else {
            continue;
        };
        let counted = line.split_once(":calls=").and_then(|(command, rest)| {
            let calls = rest.split(',').next()?.parse::<f64>().ok()?;
            Some((command, calls))
        });
        let (command, calls) = counted.context("the server counts commands in another way")?;
        if command != "info" {
            sum += calls;
        }
    }
    Ok(sum)
}
