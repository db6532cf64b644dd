//! One large cluster without faults but two, and what it takes: traffic with the store, intervals,
//! how long changes take to be seen, how long a start, a death and a flushed store are felt.
//!
//! All nodes are real nodes in virtual time; the store counts bytes as Redis would need them.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, ClusterSecret, KeyChain};
use flexkv_index::Share;
use flexkv_node::Node;
use flexkv_ports::{Filled, KvCache as _, StoreFaults};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Shape};
use crate::scenario::runtime;
use crate::store::Traffic;

/// Blocks that each node has room for.
const SLOTS: u32 = 64;
/// Blocks of one prompt, stored at once.
const PROMPT: u64 = 8;
/// How long the cluster works before it is measured, and how long it is.
const WARM_UP: Duration = Duration::from_secs(30);
const MEASURED: Duration = Duration::from_secs(60);
/// How many changes are followed until another node sees them.
const PROBES: usize = 40;
/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct ScaleOptions {
    /// Decides delays and who is looked at.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Those of them that store blocks.
    pub active: usize,
    /// Blocks that each of these stores in a second.
    pub blocks_per_second: u64,
    /// What all nodes may exchange with the store in a second.
    pub store_bytes_per_second: u64,
}

/// Runs the cluster; lines to print, or what is wrong.
pub fn scale(options: ScaleOptions) -> Result<Vec<String>, String> {
    runtime().block_on(measure(options))
}

async fn measure(options: ScaleOptions) -> Result<Vec<String>, String> {
    let mut large = Large::new(options);
    let mut lines = vec![format!(
        "{} nodes, {} of them store {} blocks a second each, budget {} MB/s",
        options.nodes,
        options.active,
        options.blocks_per_second,
        options.store_bytes_per_second / 1_000_000
    )];
    let began = Instant::now();
    (0..options.nodes).for_each(|i| large.cluster.start(&Cluster::name(i)));
    large.until_all_see(options.nodes - 1).await?;
    lines.push(format!("all see all after {:.1} s", seconds(began)));
    let work = large.work();
    sleep(WARM_UP).await;
    let before = large.cluster.store.traffic();
    let seen = large.probes().await?;
    sleep(MEASURED.saturating_sub(seen.took)).await;
    let spent = large.cluster.store.traffic().since(&before);
    let window = seen.took.max(MEASURED).as_secs_f64();
    lines.extend(large.traffic(&spent, window)?);
    lines.push(format!(
        "a change is seen elsewhere after {:.0} ms (median of {PROBES}), {:.0} ms (longest)",
        seen.median * 1e3,
        seen.longest * 1e3
    ));
    work.abort();
    lines.extend(large.memory());
    lines.push(large.death().await?);
    lines.push(large.flush().await?);
    Ok(lines)
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// How long changes took to be seen.
struct Seen {
    median: f64,
    longest: f64,
    took: Duration,
}

struct Large {
    options: ScaleOptions,
    cluster: Arc<Cluster>,
    rng: fastrand::Rng,
}

impl Large {
    fn new(options: ScaleOptions) -> Self {
        let mut rng = fastrand::Rng::with_seed(options.seed);
        let shape = Shape {
            nodes: options.nodes,
            slots: SLOTS,
            block_bytes: BlockKey::BYTES,
            twins: false,
            entry_blocks: 4096,
            queue_bytes: 16 << 20,
            rotate_bytes: 1 << 20,
            store_bytes_per_second: options.store_bytes_per_second,
        };
        let cluster = Arc::new(Cluster::new(shape, None, &mut rng));
        cluster.store.set_weather(StoreFaults {
            latency: Duration::from_micros(300)..=Duration::from_millis(2),
            ..StoreFaults::default()
        });
        Self {
            options,
            cluster,
            rng,
        }
    }

    /// Waits until every node sees so many peers.
    async fn until_all_see(&self, peers: usize) -> Result<(), String> {
        let began = Instant::now();
        while let Some((name, node)) = self
            .cluster
            .live()
            .into_iter()
            .find(|(_, node)| node.peers() != peers)
        {
            if began.elapsed() > PATIENCE {
                return Err(format!("{name} sees {} peers of {peers}", node.peers()));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Nodes that store prompts at their rate until the task is ended.
    fn work(&mut self) -> tokio::task::JoinHandle<()> {
        let every = Duration::from_secs(PROMPT) / self.options.blocks_per_second.max(1) as u32;
        let nodes: Vec<_> = self
            .cluster
            .live()
            .into_iter()
            .take(self.options.active)
            .collect();
        let mut rng = self.rng.fork();
        tokio::spawn(async move {
            let mut workers = tokio::task::JoinSet::new();
            for (_, node) in nodes {
                let mut rng = rng.fork();
                workers.spawn(async move {
                    sleep(every.mul_f64(rng.f64())).await;
                    loop {
                        store(&node, &prompt(&mut rng, PROMPT)).await;
                        sleep(every).await;
                    }
                });
            }
            workers.join_all().await;
        })
    }

    /// Stores a block somewhere and waits until it is seen elsewhere, over and over.
    async fn probes(&mut self) -> Result<Seen, String> {
        let live = self.cluster.live();
        let began = Instant::now();
        let mut times = Vec::new();
        while times.len() < PROBES {
            let from = self.rng.usize(..self.options.active.max(1));
            let to = (from + self.rng.usize(1..live.len())) % live.len();
            let keys = prompt(&mut self.rng, 1);
            store(&live[from].1, &keys).await;
            let stored = Instant::now();
            while !sees(&live[to].1, &keys).await {
                if stored.elapsed() > PATIENCE {
                    return Err(format!(
                        "{} never saw a block of {}",
                        live[to].0, live[from].0
                    ));
                }
                sleep(Duration::from_millis(1)).await;
            }
            times.push(seconds(stored));
            sleep(Duration::from_millis(self.rng.u64(0..200))).await;
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(Seen {
            median: times[times.len() / 2],
            longest: times[times.len() - 1],
            took: began.elapsed(),
        })
    }

    /// What was exchanged, and whether that kept to the budget.
    fn traffic(&self, spent: &Traffic, window: f64) -> Result<Vec<String>, String> {
        let live = self.cluster.live();
        let a_second = |n: u64| n as f64 / window;
        let stats: Vec<_> = live.iter().map(|(_, node)| node.sync_stats()).collect();
        let longest = stats
            .iter()
            .map(|s| s.batch_interval)
            .max()
            .unwrap_or_default();
        let over: u64 = stats.iter().map(|s| s.published.over_budget).sum();
        let total = a_second(spent.asked + spent.answered);
        let budget = self.options.store_bytes_per_second as f64;
        let lines = vec![
            format!(
                "store: {:.2} MB/s out, {:.2} MB/s in, {:.0} calls/s",
                a_second(spent.answered) / 1e6,
                a_second(spent.asked) / 1e6,
                a_second(spent.calls)
            ),
            format!(
                "a follower: {:.1} kB/s in {:.1} readings/s; batch interval {:.0} ms; {over} over budget",
                a_second(spent.answered) / 1e3 / live.len() as f64,
                a_second(spent.reads) / live.len() as f64,
                longest.as_secs_f64() * 1e3
            ),
        ];
        if total > budget && over == 0 {
            return Err(format!(
                "{total:.0} bytes a second with the store, budget {budget:.0}"
            ));
        }
        Ok(lines)
    }

    fn memory(&self) -> Vec<String> {
        let snapshots: Vec<_> = self
            .cluster
            .live()
            .iter()
            .map(|(_, node)| node.sync_stats().snapshot)
            .collect();
        let most = snapshots.iter().map(|s| s.bytes).max().unwrap_or_default();
        let replicas = snapshots
            .iter()
            .map(|s| s.replicas)
            .max()
            .unwrap_or_default();
        vec![format!(
            "snapshot: {replicas} replicas in {:.1} MB",
            most as f64 / 1e6
        )]
    }

    /// One node dies; until all others have forgotten it.
    async fn death(&self) -> Result<String, String> {
        let died = Instant::now();
        self.cluster.crash(&Cluster::name(0));
        self.until_all_see(self.options.nodes - 2).await?;
        Ok(format!(
            "a dead node is forgotten by all after {:.1} s",
            seconds(died)
        ))
    }

    /// The store loses everything; until it has all leases and everybody reads the new logs, without
    /// having lost sight of anybody.
    async fn flush(&self) -> Result<String, String> {
        let lists = Share {
            nodes: self.options.nodes as u32,
            ..Share::alone(self.options.store_bytes_per_second)
        }
        .members_interval(Duration::from_secs(2));
        let flushed = Instant::now();
        self.cluster.store.flush();
        while self.cluster.store.leases().await.len() < self.options.nodes - 1 {
            if flushed.elapsed() > PATIENCE {
                return Err("not all came back after the store was flushed".to_owned());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let back = seconds(flushed);
        let end = Instant::now() + 2 * lists + Duration::from_secs(30);
        while Instant::now() < end {
            let seen = self
                .cluster
                .live()
                .iter()
                .map(|(_, node)| node.peers())
                .min();
            if seen != Some(self.options.nodes - 2) {
                return Err(format!(
                    "after the store was flushed, a node sees {seen:?} peers"
                ));
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(format!(
            "a flushed store has all nodes again after {back:.1} s; nobody lost sight of anybody"
        ))
    }
}

impl Traffic {
    fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            reads: self.reads - before.reads,
            asked: self.asked - before.asked,
            answered: self.answered - before.answered,
        }
    }
}

/// A prompt nobody has.
fn prompt(rng: &mut fastrand::Rng, blocks: u64) -> Vec<BlockKey> {
    let text: Vec<u32> = std::iter::repeat_with(|| rng.u32(..))
        .take(blocks as usize)
        .collect();
    let secret = ClusterSecret::derive(b"simulation");
    KeyChain::keys(&secret, BlockKey::from_u128(0), 1, &text)
}

async fn store(node: &Arc<Node>, keys: &[BlockKey]) {
    let Ok(grant) = node.store(keys, 0).await else {
        return;
    };
    let filled = |(index, slot): (usize, &Option<_>)| {
        let slot: &flexkv_ports::MemorySlice = slot.as_ref()?;
        slot.write(0, &keys[index].to_bytes());
        Some(Filled {
            index,
            checksum: slot.checksum(),
        })
    };
    let filled: Vec<_> = grant.slots.iter().enumerate().filter_map(filled).collect();
    let done = node.commit(grant.ticket, &filled).await;
    drop((done, node.release(grant.ticket).await));
}

async fn sees(node: &Arc<Node>, keys: &[BlockKey]) -> bool {
    let Ok(hit) = node.match_prefix(keys).await else {
        return false;
    };
    drop(node.release(hit.ticket).await);
    hit.blocks == keys.len()
}

#[cfg(test)]
mod tests;
