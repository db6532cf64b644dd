//! What metadata costs the server and the nodes that follow, beside the formulas of `docs/scale.md`.
//!
//! One node process of a cluster stores prompts at a steady rate and evicts as many; all follow. What
//! was published in that time is read from the logs afterwards. Knows nothing of why the formulas are
//! what they are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use flexkv_block::BlockKey;
use flexkv_index::log::{Entry, EntryPlace};
use flexkv_index::pace::{
    CURSOR_BYTES, ENTRY_FRAMING, LOG_FRAMING, MEMBER_BYTES, MEMBERS_LOOKED_AT,
};
use flexkv_index::{NodeId, NodeRecord, PolicyKind};
use flexkv_ports::{KvCache, LogCursor, MetadataStore as _};
use flexkv_redis::RedisStore;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};

use super::{BLOCK_BYTES, BLOCK_TOKENS, MEMBERS_INTERVAL, Served, store};
use crate::bench::cpu_of;
use crate::cluster::{ClusterSpec, Deployment, Metadata, ProcessCluster, connect};
use crate::config::RedisSetting;

/// Blocks that a node keeps.
const SLOTS: u32 = 1600;
/// Blocks of a prompt.
const PROMPT: usize = 8;
/// Prompts stored in a second, one load after the other.
const LOADS: [u32; 2] = [50, 200];
/// After the node is full.
const WARM_UP: Duration = Duration::from_secs(2);
/// Entries of one reading.
const ENTRIES: usize = 4096;

/// What a request to read says beside the logs, and one to append, which has a script, beside entries.
const READING_BYTES: f64 = 100.0;
const APPEND_BYTES: f64 = 900.0;
/// Commands a second of an idle node.
const IDLE_COMMANDS: f64 = 1.6;
/// What the log of a node takes beside three checkpoints.
const LOG_BYTES: f64 = (1 << 20) as f64;
/// Processor time of a follower for one reading, and for one block of it, in microseconds: as
/// measured on the machine of `docs/benchmarks.md`.
const READING_CPU: f64 = 170.0;
const BLOCK_CPU: f64 = 0.3;

/// What to measure.
pub struct FollowersPlan {
    /// The server.
    pub redis: RedisSetting,
    /// Sizes of clusters.
    pub nodes: Vec<usize>,
    /// How long each is watched.
    pub watch: Duration,
    /// The `flexkv` command: a program and its first arguments.
    pub program: Vec<OsString>,
}

/// A measured value beside what a formula says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// What was measured.
    pub name: &'static str,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Blocks that were added or removed in a second.
    pub changes: f64,
    /// Entries in which they were published in a second.
    pub entries: f64,
    /// Of what the values are.
    pub unit: &'static str,
    /// What was found.
    pub measured: f64,
    /// What the formula says.
    pub formula: f64,
    /// The former in units of the latter.
    pub ratio: f64,
}

/// Measures clusters of all sizes.
pub async fn followers(plan: &FollowersPlan) -> Result<Vec<Checked>> {
    let mut rows = Vec::new();
    for nodes in &plan.nodes {
        for prompts in LOADS {
            rows.extend(measure(plan, *nodes, prompts).await?);
        }
    }
    Ok(rows)
}

async fn measure(plan: &FollowersPlan, nodes: usize, prompts: u32) -> Result<Vec<Checked>> {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES)?;
    let reader = connect(&plan.redis, &deployment).await?;
    let empty = Served::by(&reader).await?.memory;
    let spec = ClusterSpec {
        nodes,
        slots: SLOTS,
        policy: PolicyKind::default(),
        ssd: None,
        metadata: Metadata::Redis(plan.redis.clone()),
        deployment: deployment.clone(),
        members_interval: MEMBERS_INTERVAL,
    };
    let cluster = ProcessCluster::start(&plan.program, &spec).await?;
    let caches = cluster.caches().await?;
    let busy = caches.first().context("no nodes")?.clone();
    let work = tokio::spawn(work(busy, prompts, deployment.block_bytes));
    let full = f64::from(SLOTS) / (PROMPT as f64 * f64::from(prompts));
    sleep(WARM_UP + Duration::from_secs_f64(full)).await;

    let mut logs = Logs::of(&reader).await?;
    logs.read(&reader).await?;
    let (before, used) = (Served::by(&reader).await?, cpu_of_followers(&cluster)?);
    let began = Instant::now();
    sleep(plan.watch).await;
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu_of_followers(&cluster)?.saturating_sub(used);
    let spent = Served::by(&reader).await?.since(&before);
    let published = logs.read(&reader).await?;
    work.abort();
    drop(caches);
    cluster.stop().await;
    let followers = (nodes - 1).max(1) as f64;
    let measured = Measured {
        sent: spent.sent / seconds,
        received: spent.received / seconds,
        commands: spent.commands / seconds,
        memory: spent.memory - empty,
        cpu: used.as_secs_f64() * 1e3 / seconds / followers,
    };
    Ok(measured.rows(nodes, &published.per_second(seconds)))
}

/// Stores prompts that nobody has.
async fn work(cache: Arc<dyn KvCache>, prompts: u32, block_bytes: usize) -> Result<()> {
    let mut rng = Rng::new();
    let mut ticks = interval(Duration::from_secs(1) / prompts);
    loop {
        ticks.tick().await;
        let key = |_| BlockKey::from_u128(rng.u128(..));
        let keys: Vec<_> = (0..PROMPT).map(key).collect();
        store(&*cache, &keys, block_bytes).await?;
    }
}

/// Processor time that all but the first node have used.
fn cpu_of_followers(cluster: &ProcessCluster) -> Result<Duration> {
    let pids = cluster.pids();
    let mut used = Duration::ZERO;
    for pid in pids.iter().skip(1) {
        used += cpu_of(pid.context("a node process has ended")?)?;
    }
    Ok(used)
}

/// What a second cost.
struct Measured {
    sent: f64,
    received: f64,
    commands: f64,
    memory: f64,
    /// Milliseconds of one follower.
    cpu: f64,
}

impl Measured {
    /// Beside the formulas, for what was published in a second.
    fn rows(&self, nodes: usize, published: &Published) -> Vec<Checked> {
        let Published {
            entries,
            bytes,
            changes,
        } = *published;
        let n = nodes as f64;
        let frames = entries * (ENTRY_FRAMING + LOG_FRAMING) as f64;
        let looked_at = n.min(MEMBERS_LOOKED_AT as f64) * MEMBER_BYTES as f64;
        let members = n * looked_at / MEMBERS_INTERVAL.as_secs_f64();
        let readings = n * entries;
        let row = |name, unit, measured: f64, formula: f64| Checked {
            name,
            nodes,
            changes,
            entries,
            unit,
            measured,
            formula,
            ratio: measured / formula,
        };
        let kb = |bytes: f64| bytes / 1e3;
        let sent = n * (bytes + frames) + members;
        let reading = READING_BYTES + n * CURSOR_BYTES as f64;
        let received = readings * reading + entries * APPEND_BYTES + bytes;
        let memory = n * LOG_BYTES + 3.0 * 11.0 * f64::from(SLOTS);
        let commands = readings + 3.0 * entries + n * IDLE_COMMANDS;
        let cpu = (entries * READING_CPU + changes * BLOCK_CPU) / 1e3;
        vec![
            row("store sends", "kB/s", kb(self.sent), kb(sent)),
            row("store receives", "kB/s", kb(self.received), kb(received)),
            row("commands", "1/s", self.commands, commands),
            row("store memory, at most", "kB", kb(self.memory), kb(memory)),
            row("processor of a follower", "ms/s", self.cpu, cpu),
        ]
    }
}

/// What was published: in all, or in a second.
#[derive(Clone, Copy, Debug, Default)]
struct Published {
    entries: f64,
    /// Of the entries.
    bytes: f64,
    /// Blocks added or removed.
    changes: f64,
}

impl Published {
    fn per_second(&self, seconds: f64) -> Self {
        Self {
            entries: self.entries / seconds,
            bytes: self.bytes / seconds,
            changes: self.changes / seconds,
        }
    }
}

/// The logs of all nodes, and up to where they were read.
struct Logs(BTreeMap<String, (NodeId, u64)>);

impl Logs {
    async fn of(reader: &RedisStore) -> Result<Self> {
        let mut logs = BTreeMap::new();
        for member in reader.members().await? {
            let record = NodeRecord::decode(&member.record)?;
            let start = record.log_start - 1;
            logs.insert(record.log(), (record.info.node().clone(), start));
        }
        Ok(Self(logs))
    }

    /// Reads everything that there is by now; says how much of it are changes.
    async fn read(&mut self, reader: &RedisStore) -> Result<Published> {
        let mut published = Published::default();
        loop {
            let cursor = |(log, (_, after)): (&String, &(NodeId, u64))| LogCursor {
                log: log.clone(),
                after: *after,
            };
            let cursors: Vec<_> = self.0.iter().map(cursor).collect();
            let reads = reader.read(&cursors, ENTRIES, Duration::ZERO).await?;
            if reads.is_empty() {
                return Ok(published);
            }
            for read in reads {
                let (node, after) = self.0.get_mut(&read.log).context("a foreign log")?;
                for entry in read.entries {
                    *after = entry.sequence;
                    let place = EntryPlace {
                        incarnation: node.incarnation,
                        sequence: entry.sequence,
                    };
                    if let Entry::Delta(batch) = Entry::decode(&entry.bytes, place)? {
                        published.entries += 1.0;
                        published.bytes += entry.bytes.len() as f64;
                        published.changes += batch.blocks() as f64;
                    }
                }
            }
        }
    }
}
