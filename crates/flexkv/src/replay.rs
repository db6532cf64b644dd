//! Plays a trace on a cluster: requests in file order, dealt round-robin to the nodes, one after
//! the other. Every block that comes from the cache is checked byte for byte.
//!
//! A node that dies in mid-replay costs hits, nothing else: its requests go on without a cache.

mod ideal;

use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, KvCache};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::ideal::Ideal;
use crate::cluster::{ClusterSpec, Counts, LocalCluster, Metadata, ProcessCluster};
use crate::engine::{Engine, Outcome};
use crate::report::{Summary, Tally, progress};
use crate::trace::{TraceKeys, TraceRequest};

/// What a replay comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayReport {
    /// Nodes at the start.
    pub nodes: usize,
    /// Nodes that died in mid-replay.
    pub dead_nodes: usize,
    /// Blocks that each node keeps in memory.
    pub node_blocks: u32,
    /// Blocks that each node keeps on SSD.
    pub ssd_blocks: u32,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// All requests together.
    #[serde(flatten)]
    pub summary: Summary,
    /// The share of blocks that one list in order of use would have served, as long as memory and SSDs
    /// of all nodes together; of each node's own, if nodes are alone.
    pub ideal_hit_rate: f64,
    /// The share of blocks got from the cache in each tenth of the requests.
    pub hit_rate_by_tenth: [f64; TENTHS],
    /// Blocks written to SSDs; `None` if there are none.
    pub ssd_written_blocks: Option<u64>,
    /// Blocks read from SSDs.
    pub ssd_read_blocks: Option<u64>,
    /// What came after all nodes were killed and started again, if that was wanted.
    pub restart: Option<Restart>,
    /// How long the requests took.
    pub seconds: f64,
}

/// Into so many parts the requests are divided.
const TENTHS: usize = 10;
/// After a restart hits are told for each of so many seconds; the last one has all that comes later.
const SECONDS: usize = 10;

/// What came after a restart of all nodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restart {
    /// How long it took from the start of the nodes until engines were attached to them.
    pub attached_after: f64,
    /// Blocks that the nodes found on their SSDs.
    pub recovered_blocks: u64,
    /// Blocks that nodes asked of others since, who did not answer.
    pub unanswered_blocks: u64,
    /// Hits in each second since the start of the nodes; the last one has all that came later.
    pub by_second: Vec<Share>,
}

/// How much of the requests of some time was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Blocks of their prompts.
    pub blocks: u64,
    /// Of these, blocks that engines got from the cache.
    pub hit_blocks: u64,
    /// The same of the ideal cache, which no restart empties.
    pub ideal_hit_blocks: u64,
}

/// How a trace is played.
pub struct Play<'a> {
    /// The requests.
    pub requests: &'a [TraceRequest],
    /// Makes keys of them.
    pub keys: &'a TraceKeys,
    /// Longest wait for the blocks of one prompt.
    pub load_deadline: Duration,
    /// After so many requests all node processes are killed and started again.
    pub restart_after: Option<usize>,
}

/// Plays a trace on a cluster of `spec`: in this process, or with a process of the command
/// `program` for each node, whose ids are given to `started` once engines are attached.
pub async fn replay(
    spec: &ClusterSpec,
    program: Option<&[OsString]>,
    how: &Play<'_>,
    started: impl FnOnce(&[Option<u32>]),
) -> Result<ReplayReport> {
    match program {
        None => {
            let cluster = LocalCluster::start(spec).await?;
            let mut player = Player::new(spec, how, cluster.caches());
            let played = player.play(0..how.requests.len()).await;
            let ssd = cluster.ssd_stats();
            let report = ReplayReport {
                ssd_written_blocks: ssd.map(|ssd| ssd.written_blocks),
                ssd_read_blocks: ssd.map(|ssd| ssd.read_blocks),
                ..player.report()
            };
            cluster.stop().await;
            played.map(|()| report)
        }
        Some(program) => {
            let mut cluster = ProcessCluster::start(program, spec).await?;
            let mut player = Player::new(spec, how, cluster.caches().await?);
            started(&cluster.pids());
            let played = player.play_with_restart(&mut cluster).await;
            cluster.stop().await;
            played.map(|()| player.report())
        }
    }
}

struct Player<'a> {
    spec: &'a ClusterSpec,
    how: &'a Play<'a>,
    computing: Arc<Semaphore>,
    /// One engine for each node; `None` once its node is dead.
    engines: Vec<Option<Engine>>,
    ideal: Ideal,
    ideal_hits: u64,
    tally: Tally,
    tenths: [Tally; TENTHS],
    bar: ProgressBar,
    /// When all nodes were started again, and what came of it.
    restart: Option<(Instant, Restart)>,
    /// Blocks written to SSDs and read from them, by nodes in other processes.
    ssd_blocks: Option<(u64, u64)>,
    seconds: f64,
}

impl<'a> Player<'a> {
    fn new(spec: &'a ClusterSpec, how: &'a Play<'a>, caches: Vec<Arc<dyn KvCache>>) -> Self {
        let tally = || Tally::new(spec.deployment.block_bytes);
        let blocks = spec.slots + spec.ssd.as_ref().map_or(0, |ssd| ssd.slots);
        let alone = matches!(spec.metadata, Metadata::Alone);
        let mut player = Self {
            spec,
            how,
            computing: Arc::new(Semaphore::new(1)),
            engines: Vec::new(),
            ideal: Ideal::new(spec.nodes, blocks as usize, alone),
            ideal_hits: 0,
            tally: tally(),
            tenths: std::array::from_fn(|_| tally()),
            bar: progress(how.requests.len() as u64, "requests"),
            restart: None,
            ssd_blocks: None,
            seconds: 0.0,
        };
        player.attach(caches);
        player
    }

    fn attach(&mut self, caches: Vec<Arc<dyn KvCache>>) {
        let engine = |cache| {
            let computing = self.computing.clone();
            Some(Engine::new(cache, self.how.load_deadline, computing))
        };
        self.engines = caches.into_iter().map(engine).collect();
    }

    /// Plays all requests; somewhere in between all nodes die and come back, if that is wanted.
    async fn play_with_restart(&mut self, cluster: &mut ProcessCluster) -> Result<()> {
        let all = self.how.requests.len();
        if let Some(after) = self.how.restart_after.filter(|after| *after < all) {
            self.play(0..after).await?;
            self.note_counts(&cluster.counts().await);
            self.engines.clear();
            let began = Instant::now();
            cluster.restart(self.spec).await?;
            self.attach(cluster.caches().await?);
            let restart = Restart {
                attached_after: began.elapsed().as_secs_f64(),
                recovered_blocks: 0,
                unanswered_blocks: 0,
                by_second: Vec::new(),
            };
            self.restart = Some((began, restart));
            self.play(after..all).await?;
        } else {
            self.play(0..all).await?;
        }
        let counts = cluster.counts().await;
        self.note_counts(&counts);
        if let Some((_, restart)) = &mut self.restart {
            restart.recovered_blocks = counts.of("flexkv_ssd_recovered_blocks_total");
            let unanswered = "flexkv_fetch_failures_total{outcome=\"unreachable\"}";
            restart.unanswered_blocks = counts.of(unanswered);
        }
        Ok(())
    }

    /// Adds what node processes did with their SSDs.
    fn note_counts(&mut self, counts: &Counts) {
        if self.spec.ssd.is_some() {
            let (written, read) = self.ssd_blocks.get_or_insert((0, 0));
            *written += counts.of("flexkv_ssd_written_blocks_total");
            *read += counts.of("flexkv_ssd_read_blocks_total");
        }
    }

    async fn play(&mut self, which: Range<usize>) -> Result<()> {
        let began = Instant::now();
        let Play { requests, keys, .. } = self.how;
        for number in which {
            let keys = keys.keys(&requests[number].hash_ids);
            let turn = number % self.engines.len();
            let outcome = self
                .one(turn, &keys)
                .await
                .with_context(|| format!("request {} at node {turn}", number + 1))?;
            let ideal = self.ideal.serve(turn, &keys) as u64;
            let tenth = &mut self.tenths[number * TENTHS / requests.len()];
            for tally in [&mut self.tally, tenth] {
                match &outcome {
                    Some(outcome) => tally.add(outcome),
                    None => tally.add_uncached(keys.len()),
                }
            }
            self.ideal_hits += ideal;
            let hits = outcome.map_or(0, |outcome| outcome.local + outcome.remote);
            self.note_after_restart(Share {
                blocks: keys.len() as u64,
                hit_blocks: hits as u64,
                ideal_hit_blocks: ideal,
            });
            self.bar.set_position(number as u64 + 1);
            let rate = crate::report::percent(self.tally.hit_rate());
            self.bar.set_message(rate);
        }
        self.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    fn note_after_restart(&mut self, share: Share) {
        if let Some((began, restart)) = &mut self.restart {
            let second = (began.elapsed().as_secs() as usize).min(SECONDS - 1);
            if restart.by_second.len() <= second {
                restart.by_second.resize(second + 1, Share::default());
            }
            restart.by_second[second].add(share);
        }
    }

    fn report(&self) -> ReplayReport {
        self.bar.finish_and_clear();
        let dead = self.engines.iter().filter(|engine| engine.is_none());
        let summary = self.tally.summary();
        ReplayReport {
            nodes: self.engines.len(),
            dead_nodes: dead.count(),
            node_blocks: self.spec.slots,
            ssd_blocks: self.spec.ssd.as_ref().map_or(0, |ssd| ssd.slots),
            block_bytes: self.spec.deployment.block_bytes,
            summary,
            ideal_hit_rate: self.ideal_hits as f64 / summary.blocks.max(1) as f64,
            hit_rate_by_tenth: std::array::from_fn(|i| self.tenths[i].hit_rate()),
            ssd_written_blocks: self.ssd_blocks.map(|(written, _)| written),
            ssd_read_blocks: self.ssd_blocks.map(|(_, read)| read),
            restart: self.restart.as_ref().map(|(_, restart)| restart.clone()),
            seconds: self.seconds,
        }
    }

    /// Plays one request at node `turn`; `None` if that is dead.
    async fn one(&mut self, turn: usize, keys: &[BlockKey]) -> Result<Option<Outcome>> {
        let Some(engine) = &self.engines[turn] else {
            return Ok(None);
        };
        match engine.run(keys).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(CacheError::Gone { reason }) => {
                tracing::warn!(
                    reason,
                    "node {turn} is dead; its requests go on without a cache"
                );
                self.engines[turn] = None;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Share {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.hit_blocks += other.hit_blocks;
        self.ideal_hit_blocks += other.ideal_hit_blocks;
    }

    /// The share of blocks got from the cache, and what the ideal cache would have served.
    pub fn rates(&self) -> (f64, f64) {
        let of = |hits: u64| hits as f64 / self.blocks.max(1) as f64;
        (of(self.hit_blocks), of(self.ideal_hit_blocks))
    }
}
