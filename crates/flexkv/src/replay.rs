//! Plays a trace on a cluster: requests in file order, dealt round-robin to the nodes, one after
//! the other. Every block that comes from the cache is checked byte for byte.
//!
//! A node that dies in mid-replay costs hits, nothing else: its requests go on without a cache.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, KvCache};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::cluster::{ClusterSpec, LocalCluster, ProcessCluster};
use crate::engine::Engine;
use crate::report::{Summary, Tally, progress};
use crate::trace::{TraceKeys, TraceRequest};

/// What a replay comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReplayReport {
    /// Nodes at the start.
    pub nodes: usize,
    /// Nodes that died in mid-replay.
    pub dead_nodes: usize,
    /// Blocks that each node keeps.
    pub node_blocks: u32,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// All requests together.
    #[serde(flatten)]
    pub summary: Summary,
    /// How long the requests took.
    pub seconds: f64,
}

/// Plays `requests` on a cluster of `spec`: in this process, or with a process of the command
/// `program` for each node, whose ids are given to `started` once engines are attached.
pub async fn replay(
    spec: &ClusterSpec,
    program: Option<&[OsString]>,
    requests: &[TraceRequest],
    keys: &TraceKeys,
    load_deadline: Duration,
    started: impl FnOnce(&[Option<u32>]),
) -> Result<ReplayReport> {
    let play = |caches| Player::new(spec, caches, load_deadline).play(requests, keys);
    match program {
        None => {
            let cluster = LocalCluster::start(spec).await?;
            let report = play(cluster.caches()).await;
            cluster.stop().await;
            report
        }
        Some(program) => {
            let cluster = ProcessCluster::start(program, spec).await?;
            let caches = cluster.caches().await?;
            started(&cluster.pids());
            let report = play(caches).await;
            cluster.stop().await;
            report
        }
    }
}

struct Player<'a> {
    spec: &'a ClusterSpec,
    /// One engine for each node; `None` once its node is dead.
    engines: Vec<Option<Engine>>,
    tally: Tally,
}

impl<'a> Player<'a> {
    fn new(spec: &'a ClusterSpec, caches: Vec<Arc<dyn KvCache>>, load_deadline: Duration) -> Self {
        let computing = Arc::new(Semaphore::new(1));
        let engine = |cache| Some(Engine::new(cache, load_deadline, computing.clone()));
        Self {
            spec,
            engines: caches.into_iter().map(engine).collect(),
            tally: Tally::new(spec.deployment.block_bytes),
        }
    }

    async fn play(mut self, requests: &[TraceRequest], keys: &TraceKeys) -> Result<ReplayReport> {
        let bar = progress(requests.len() as u64, "requests");
        let began = Instant::now();
        for (number, request) in requests.iter().enumerate() {
            let keys = keys.keys(&request.hash_ids);
            let turn = number % self.engines.len();
            self.one(turn, &keys)
                .await
                .with_context(|| format!("request {} at node {turn}", number + 1))?;
            bar.set_position(number as u64 + 1);
            bar.set_message(crate::report::percent(self.tally.hit_rate()));
        }
        bar.finish_and_clear();
        Ok(ReplayReport {
            nodes: self.engines.len(),
            dead_nodes: self
                .engines
                .iter()
                .filter(|engine| engine.is_none())
                .count(),
            node_blocks: self.spec.slots,
            block_bytes: self.spec.deployment.block_bytes,
            summary: self.tally.summary(),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Plays one request at node `turn`.
    async fn one(&mut self, turn: usize, keys: &[BlockKey]) -> Result<()> {
        let outcome = match &self.engines[turn] {
            Some(engine) => Some(engine.run(keys).await),
            None => None,
        };
        match outcome {
            Some(Ok(outcome)) => self.tally.add(&outcome),
            Some(Err(CacheError::Gone { reason })) => {
                tracing::warn!(
                    reason,
                    "node {turn} is dead; its requests go on without a cache"
                );
                self.engines[turn] = None;
                self.tally.add_uncached(keys.len());
            }
            Some(Err(error)) => return Err(error.into()),
            None => self.tally.add_uncached(keys.len()),
        }
        Ok(())
    }
}
