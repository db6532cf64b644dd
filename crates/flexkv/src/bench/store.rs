//! The metadata store on a real server: what it costs to publish and to come new, how soon others
//! see a change, what a block weighs there and what an idle node asks.
//!
//! Publisher and newcomer are measured through the store's adapter and the index alone; visibility,
//! idle cost and the formulas of `docs/scale.md` with node processes.

mod followers;
mod publish;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use flexkv_block::{BlockKey, Checksum};
use flexkv_index::PolicyKind;
use flexkv_ports::{Filled, KvCache};
use flexkv_redis::RedisStore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

pub use self::followers::{Checked, FollowersPlan, followers};
use super::{Better, Row};
use crate::cluster::{ClusterSpec, Deployment, Metadata, ProcessCluster, connect};
use crate::config::RedisSetting;
use crate::report::Times;

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
    let mut rows = publish::measure(plan).await?;
    rows.extend(watched(plan).await?);
    Ok(rows)
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
    let before = Served::by(&store).await?;
    let began = Instant::now();
    sleep(plan.watch).await;
    let asked = Served::by(&store).await?.since(&before);
    let rate = |calls: f64| calls / began.elapsed().as_secs_f64() / NODES as f64;
    let (commands, scripts) = (rate(asked.commands), rate(asked.scripts));
    cluster.stop().await;
    let visible = |quantile: f64| times.micros(quantile) / 1000.0;
    let seen = "stored to visible on others";
    let (ms, idle) = ("ms", "commands of an idle node, those in scripts included");
    Ok(vec![
        Row::new(format!("{seen}, p50"), visible(0.5), ms, Better::Lower),
        Row::new(format!("{seen}, p99"), visible(0.99), ms, Better::Lower).target(20.0),
        Row::new(idle, commands, "1/s", Better::Lower).target(2.0),
        Row::new("scripts of an idle node", scripts, "1/s", Better::Lower),
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

/// What the server says that it has done so far, for everyone.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// Calls, those in scripts included and questions about the server left out.
    commands: f64,
    /// Of those: scripts.
    scripts: f64,
    /// Of those: readings of logs.
    readings: f64,
    sent: f64,
    received: f64,
    memory: f64,
}

impl Served {
    async fn by(store: &RedisStore) -> Result<Self> {
        let mut served = Self::default();
        for line in store.server_info("all").await?.lines() {
            let Some((name, value)) = line.trim().split_once(':') else {
                continue;
            };
            let number = || value.parse::<f64>().context("the server counts otherwise");
            match name {
                "total_net_output_bytes" => served.sent = number()?,
                "total_net_input_bytes" => served.received = number()?,
                "used_memory" => served.memory = number()?,
                _ => {}
            }
            let Some(command) = name.strip_prefix("cmdstat_") else {
                continue;
            };
            let calls = value
                .strip_prefix("calls=")
                .and_then(|rest| rest.split(',').next()?.parse::<f64>().ok())
                .context("the server counts commands in another way")?;
            match command {
                "info" => continue,
                "eval" => served.scripts += calls,
                "xread" => served.readings += calls,
                _ => {}
            }
            served.commands += calls;
        }
        Ok(served)
    }

    /// What came since `before`; memory is what is used now.
    fn since(&self, before: &Self) -> Self {
        Self {
            commands: self.commands - before.commands,
            scripts: self.scripts - before.scripts,
            readings: self.readings - before.readings,
            sent: self.sent - before.sent,
            received: self.received - before.received,
            memory: self.memory,
        }
    }
}
