//! One large cluster with few faults, and what it takes: traffic with the store, intervals, memory,
//! how long changes take to be seen, how long a join, deaths and a store that restarts empty are felt.
//!
//! All nodes are real nodes in virtual time; the store counts bytes as Redis would need them. What was
//! measured is held against the formulas of `docs/scale.md`, and at the end every node must know
//! exactly what all the others hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flexkv_block::{BlockKey, ClusterSecret, KeyChain};
use flexkv_node::Node;
use flexkv_ports::{Filled, KvCache as _, StoreFaults};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::checkers::formulas::{self, Work};
use crate::checkers::{bounds, owners};
use crate::cluster::{Cluster, Shape};
use crate::scenario::runtime;
use crate::store::Traffic;

/// Blocks of one prompt, stored at once.
const PROMPT: u64 = 8;
/// How many changes are followed until another node sees them, and for how long they come.
const PROBES: usize = 40;
const PROBING: Duration = Duration::from_secs(10);
/// For how long the store is away when it restarts.
const RESTART: Duration = Duration::from_secs(1);
/// How long nodes work on after that.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// Prompts whose places are checked at the end.
const CHECKED: usize = 4;
/// How often it is looked whether something is done by now.
const LOOK: Duration = Duration::from_millis(100);
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
    /// Blocks that each node has room for.
    pub slots: u32,
    /// What all nodes may exchange with the store in a second.
    pub store_bytes_per_second: u64,
    /// For how long the cluster is measured. It works half as long before.
    pub measured: Duration,
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
    lines.push(large.join().await?);
    let work = large.work();
    lines.push(large.newcomer().await?);
    sleep(options.measured / 2).await;
    lines.extend(large.steady().await?);
    lines.push(large.deaths().await?);
    lines.extend(large.restart(&work).await?);
    Ok(lines)
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// How long changes took to be seen.
struct Seen {
    median: f64,
    longest: f64,
}

/// Counters of all nodes together at one moment.
struct Counted {
    at: Instant,
    stored: u64,
    held: u64,
    entries: u64,
    bytes: u64,
    traffic: Traffic,
}

struct Large {
    options: ScaleOptions,
    cluster: Arc<Cluster>,
    rng: fastrand::Rng,
    /// Blocks that were stored.
    stored: Arc<AtomicU64>,
}

impl Large {
    fn new(options: ScaleOptions) -> Self {
        let mut rng = fastrand::Rng::with_seed(options.seed);
        let shape = Shape {
            nodes: options.nodes,
            slots: options.slots,
            ssd_slots: 0,
            admission: flexkv_node::Admission::default(),
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
            stored: Arc::default(),
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
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// All nodes start at once.
    async fn join(&self) -> Result<String, String> {
        let began = Instant::now();
        (0..self.options.nodes).for_each(|i| self.cluster.start(&Cluster::name(i)));
        self.until_all_see(self.options.nodes - 1).await?;
        Ok(format!("all see all after {:.1} s", seconds(began)))
    }

    /// One more node comes while the others work.
    async fn newcomer(&self) -> Result<String, String> {
        let (began, nodes) = (Instant::now(), self.options.nodes);
        let name = Cluster::name(nodes);
        self.cluster.start(&name);
        while self.cluster.node(&name).is_some_and(|n| n.peers() < nodes) {
            if began.elapsed() > PATIENCE {
                return Err("a newcomer does not see all".to_owned());
            }
            sleep(LOOK).await;
        }
        let sees = seconds(began);
        self.until_all_see(nodes).await?;
        let seen = seconds(began);
        Ok(format!(
            "a newcomer sees all after {sees:.1} s, and is seen by all after {seen:.1} s"
        ))
    }

    /// Nodes that store prompts at their rate until the task is ended.
    fn work(&mut self) -> AbortHandle {
        let every = Duration::from_secs(PROMPT) / self.options.blocks_per_second.max(1) as u32;
        let mut rng = self.rng.fork();
        let (cluster, stored) = (self.cluster.clone(), self.stored.clone());
        let active = self.options.active;
        let all = tokio::spawn(async move {
            let mut workers = JoinSet::new();
            for i in 0..active {
                let (mut rng, cluster, stored) = (rng.fork(), cluster.clone(), stored.clone());
                workers.spawn(async move {
                    sleep(every.mul_f64(rng.f64())).await;
                    while let Some(node) = cluster.node(&Cluster::name(i)) {
                        store(&node, &prompt(&mut rng, PROMPT)).await;
                        stored.fetch_add(PROMPT, Ordering::Relaxed);
                        sleep(every).await;
                    }
                });
            }
            workers.join_all().await;
        });
        all.abort_handle()
    }

    /// Stores blocks here and there and waits until each is seen elsewhere.
    async fn probes(&mut self) -> Result<Seen, String> {
        let live = self.cluster.live();
        let active: Vec<_> = (0..self.options.active).map(Cluster::name).collect();
        let mut probes = JoinSet::new();
        for _ in 0..PROBES {
            let from = self.rng.choice(&active);
            let others: Vec<_> = live.iter().filter(|(name, _)| Some(name) != from).collect();
            let to = self.rng.choice(others).map(|(_, node)| node.clone());
            let from = from.and_then(|name| self.cluster.node(name));
            let (Some(from), Some(to)) = (from, to) else {
                return Err("there are no nodes to probe".to_owned());
            };
            let keys = prompt(&mut self.rng, 1);
            let start = PROBING.mul_f64(self.rng.f64());
            probes.spawn(probe(from, to, keys, start));
            self.stored.fetch_add(1, Ordering::Relaxed);
        }
        let times: Result<Vec<f64>, String> = probes.join_all().await.into_iter().collect();
        let mut times = times?;
        times.sort_unstable_by(f64::total_cmp);
        Ok(Seen {
            median: times[times.len() / 2],
            longest: times[times.len() - 1],
        })
    }

    fn count(&self) -> Counted {
        let live = self.cluster.live();
        let stats = || live.iter().map(|(_, node)| node.sync_stats().published);
        Counted {
            at: Instant::now(),
            stored: self.stored.load(Ordering::Relaxed),
            held: live.iter().map(|(_, node)| node.blocks() as u64).sum(),
            entries: stats().map(|stats| stats.entries).sum(),
            bytes: stats().map(|stats| stats.bytes).sum(),
            traffic: self.cluster.store.traffic(),
        }
    }

    /// What was done since.
    fn since(&self, before: &Counted) -> Work {
        let now = self.count();
        let stored = now.stored - before.stored;
        Work {
            seconds: seconds(before.at),
            nodes: self.cluster.live().len(),
            active: self.options.active,
            changes: (2 * stored + before.held).saturating_sub(now.held),
            entries: now.entries - before.entries,
            bytes: now.bytes - before.bytes,
            traffic: now.traffic.since(&before.traffic),
            budget: self.options.store_bytes_per_second,
        }
    }

    /// The cluster at work: what it takes, and whether that is what the formulas say.
    async fn steady(&mut self) -> Result<Vec<String>, String> {
        let before = self.count();
        let seen = self.probes().await?;
        sleep(self.options.measured.saturating_sub(before.at.elapsed())).await;
        let work = self.since(&before);
        let mut lines = self.traffic(&work)?;
        formulas::traffic(&work)?;
        lines.push(format!(
            "a change is seen elsewhere after {:.0} ms (median of {PROBES}), {:.0} ms (longest)",
            seen.median * 1e3,
            seen.longest * 1e3
        ));
        lines.push(self.memory()?);
        Ok(lines)
    }

    /// What was exchanged, and whether that kept to the budget.
    fn traffic(&self, work: &Work) -> Result<Vec<String>, String> {
        let live = self.cluster.live();
        let (spent, nodes) = (&work.traffic, live.len() as f64);
        let a_second = |n: u64| n as f64 / work.seconds;
        let stats: Vec<_> = live.iter().map(|(_, node)| node.sync_stats()).collect();
        let intervals = stats.iter().map(|s| s.batch_interval);
        let longest = intervals.max().unwrap_or_default();
        let over: u64 = stats.iter().map(|s| s.published.over_budget).sum();
        let total = a_second(spent.asked + spent.answered);
        let budget = self.options.store_bytes_per_second as f64;
        if total > budget && over == 0 {
            return Err(format!(
                "{total:.0} bytes a second with the store, budget {budget:.0}"
            ));
        }
        Ok(vec![
            format!(
                "{:.0} changes/s of {:.1} B each in {:.0} entries/s",
                a_second(work.changes),
                work.bytes_a_change(),
                a_second(work.entries)
            ),
            format!(
                "store: {:.2} MB/s out (formula {:.2}), {:.2} MB/s in (formula {:.2}), {:.0} calls/s",
                a_second(spent.answered) / 1e6,
                work.sent() / 1e6,
                a_second(spent.asked) / 1e6,
                work.received() / 1e6,
                a_second(spent.calls)
            ),
            format!(
                "a follower: {:.1} kB/s in {:.1} readings/s; batch interval {:.0} ms; {over} over budget",
                a_second(spent.answered) / 1e3 / nodes,
                a_second(spent.reads) / nodes,
                longest.as_secs_f64() * 1e3
            ),
        ])
    }

    fn memory(&self) -> Result<String, String> {
        let live = self.cluster.live();
        let stats: Vec<_> = live.iter().map(|(_, n)| n.sync_stats().snapshot).collect();
        stats.iter().try_for_each(formulas::memory)?;
        let most = stats.iter().max_by_key(|stats| stats.bytes);
        Ok(most.map_or_else(String::new, |most| {
            format!(
                "largest snapshot: {} replicas in {:.2} MB",
                most.replicas,
                most.bytes as f64 / 1e6
            )
        }))
    }

    /// One node of a hundred dies; until all others have forgotten them.
    async fn deaths(&self) -> Result<String, String> {
        let (died, dead) = (Instant::now(), (self.options.nodes / 100).max(1));
        (0..dead).for_each(|i| self.cluster.crash(&Cluster::name(i)));
        self.until_all_see(self.cluster.live().len() - 1).await?;
        Ok(format!(
            "{dead} dead: forgotten by all after {:.1} s",
            seconds(died)
        ))
    }

    /// The store is away for a while and comes back empty. Nobody may lose sight of anybody; nodes work
    /// on for a while, and when they stop, everybody soon knows exactly what all the others hold.
    async fn restart(&self, work: &AbortHandle) -> Result<Vec<String>, String> {
        let store = &self.cluster.store;
        let live = self.cluster.live();
        store.set_stopped(true);
        store.flush();
        sleep(RESTART).await;
        let back = Instant::now();
        store.set_stopped(false);
        while store.leases().await.len() < live.len() {
            if back.elapsed() > PATIENCE {
                return Err("not all leases are back".to_owned());
            }
            sleep(LOOK).await;
        }
        let leased = seconds(back);
        while back.elapsed() < AFTERWARDS {
            self.all_in_sight()?;
            sleep(LOOK).await;
        }
        work.abort();
        let exact = self.exact().await?;
        Ok(vec![
            format!("a store that restarted empty has all leases after {leased:.1} s"),
            format!("after the last change all know exactly what all hold within {exact:.1} s"),
        ])
    }

    fn all_in_sight(&self) -> Result<(), String> {
        let live = self.cluster.live();
        let fewest = live.iter().map(|(_, node)| node.peers()).min();
        if fewest == live.len().checked_sub(1) {
            return Ok(());
        }
        Err(format!("a node sees {fewest:?} peers after the restart"))
    }

    /// How long it takes until every node believes exactly what the others hold: as many blocks as
    /// there are, and a few new prompts to the place.
    async fn exact(&self) -> Result<f64, String> {
        let mut rng = fastrand::Rng::with_seed(!self.options.seed);
        let live = self.cluster.live();
        let mut prompts = Vec::new();
        for _ in 0..CHECKED {
            let keys = prompt(&mut rng, PROMPT);
            for _ in 0..CHECKED {
                if let Some((_, node)) = rng.choice(&live) {
                    store(node, &keys).await;
                }
            }
            prompts.push(keys);
        }
        let began = Instant::now();
        loop {
            self.all_in_sight()?;
            let mut exact = bounds::snapshots(&self.cluster);
            if exact.is_ok() {
                exact = owners::check(&self.cluster, &prompts).await;
            }
            match exact {
                Ok(()) => return Ok(seconds(began)),
                Err(wrong) if began.elapsed() > PATIENCE => return Err(wrong),
                Err(_) => sleep(LOOK).await,
            }
        }
    }
}

/// Stores a block at one node; how long it takes until another one sees it.
async fn probe(
    from: Arc<Node>,
    to: Arc<Node>,
    keys: Vec<BlockKey>,
    start: Duration,
) -> Result<f64, String> {
    sleep(start).await;
    store(&from, &keys).await;
    let stored = Instant::now();
    while !sees(&to, &keys).await {
        if stored.elapsed() > PATIENCE {
            return Err(format!("{} never saw a block of {}", to.id(), from.id()));
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(seconds(stored))
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
