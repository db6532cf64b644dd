//! Plays a trace on a cluster: requests in file order, dealt round-robin to the nodes, one after
//! the other. Every block that comes from the cache is checked byte for byte.
//!
//! A node that dies in mid-replay costs hits, nothing else: its requests go on without a cache.

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

use crate::cluster::{ClusterSpec, LocalCluster, ProcessCluster};
use crate::engine::{Engine, Outcome};
use crate::report::{Summary, Tally, progress};
use crate::trace::{TraceKeys, TraceRequest};

/// What a replay comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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
    /// The share of blocks got from the cache in each tenth of the requests.
    pub hit_rate_by_tenth: [f64; TENTHS],
    /// Blocks written to SSDs; `None` if there are none, or in other processes.
    pub ssd_written_blocks: Option<u64>,
    /// Blocks read from SSDs.
    pub ssd_read_blocks: Option<u64>,
    /// How long it took from the start of all nodes anew until engines were attached to them, if that
    /// was wanted.
    pub restart_seconds: Option<f64>,
    /// How long the requests took.
    pub seconds: f64,
}

/// Into so many parts the requests are divided.
const TENTHS: usize = 10;

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
    tally: Tally,
    tenths: [Tally; TENTHS],
    bar: ProgressBar,
    restart_seconds: Option<f64>,
    seconds: f64,
}

impl<'a> Player<'a> {
    fn new(spec: &'a ClusterSpec, how: &'a Play<'a>, caches: Vec<Arc<dyn KvCache>>) -> Self {
        let tally = || Tally::new(spec.deployment.block_bytes);
        let mut player = Self {
            spec,
            how,
            computing: Arc::new(Semaphore::new(1)),
            engines: Vec::new(),
            tally: tally(),
            tenths: std::array::from_fn(|_| tally()),
            bar: progress(how.requests.len() as u64, "requests"),
            restart_seconds: None,
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
        let Some(after) = self.how.restart_after.filter(|after| *after < all) else {
            return self.play(0..all).await;
        };
        self.play(0..after).await?;
        self.engines.clear();
        let began = Instant::now();
        cluster.restart(self.spec).await?;
        self.attach(cluster.caches().await?);
        self.restart_seconds = Some(began.elapsed().as_secs_f64());
        self.play(after..all).await
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
            let tenth = &mut self.tenths[number * TENTHS / requests.len()];
            for tally in [&mut self.tally, tenth] {
                match &outcome {
                    Some(outcome) => tally.add(outcome),
                    None => tally.add_uncached(keys.len()),
                }
            }
            self.bar.set_position(number as u64 + 1);
            let rate = crate::report::percent(self.tally.hit_rate());
            self.bar.set_message(rate);
        }
        self.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    fn report(&self) -> ReplayReport {
        self.bar.finish_and_clear();
        let dead = self.engines.iter().filter(|engine| engine.is_none());
        ReplayReport {
            nodes: self.engines.len(),
            dead_nodes: dead.count(),
            node_blocks: self.spec.slots,
            ssd_blocks: self.spec.ssd.as_ref().map_or(0, |ssd| ssd.slots),
            block_bytes: self.spec.deployment.block_bytes,
            summary: self.tally.summary(),
            hit_rate_by_tenth: std::array::from_fn(|i| self.tenths[i].hit_rate()),
            ssd_written_blocks: None,
            ssd_read_blocks: None,
            restart_seconds: self.restart_seconds,
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
