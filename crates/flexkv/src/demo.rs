//! The demo: a seeded chat workload, played twice: every node alone, then all nodes as a cluster.
//!
//! Engines attach over sockets, as engine processes do; blocks cross between nodes in memory that they share. Knows
//! nothing of how its report is shown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_index::PolicyKind;
use flexkv_ports::CacheError;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{ClusterSpec, Deployment, LocalCluster, MEMBERS_EVERY, Metadata};
use crate::engine::{Engine, Outcome};
use crate::report::{Summary, Tally, progress};
use crate::workload::{ChatRequest, ChatSpec, ChatWorkload};

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct DemoSpec {
    /// Nodes to start.
    pub nodes: usize,
    /// Engines at each node.
    pub engines_per_node: usize,
    /// Requests to play.
    pub requests: usize,
    /// Seed of the workload.
    pub seed: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Memory of each node, in bytes.
    pub node_bytes: u64,
    /// Where the nodes find each other.
    pub metadata: Metadata,
    /// Longest wait for the blocks of a prompt.
    pub load_deadline: Duration,
}

/// What the demo comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// Nodes started.
    pub nodes: usize,
    /// Engines in all.
    pub engines: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Blocks that each node keeps.
    pub node_blocks: u32,
    /// The seed that plays the same again.
    pub seed: u64,
    /// The workload with every node alone.
    pub alone: Summary,
    /// The same workload with all nodes as a cluster.
    pub cluster: Summary,
    /// How long it all took.
    pub seconds: f64,
}

impl DemoReport {
    /// Blocks with wrong bytes, which there never may be.
    pub fn corrupt_blocks(&self) -> u64 {
        self.alone.corrupt_blocks + self.cluster.corrupt_blocks
    }
}

/// Plays the workload of `spec`, alone and as a cluster.
pub async fn demo(spec: &DemoSpec) -> Result<DemoReport> {
    let began = Instant::now();
    let deployment = Deployment::synthetic(spec.block_tokens, spec.block_bytes)?;
    let engines = spec.nodes * spec.engines_per_node;
    let chat = ChatSpec {
        requests: spec.requests,
        engines,
        block_tokens: spec.block_tokens as usize,
        system_prompts: 6,
        system_tokens: 1024,
        max_turns: 6,
        max_turn_tokens: 512,
    };
    let workload = ChatWorkload::generate(&chat, &deployment.secret, deployment.root, spec.seed);
    let slots = u32::try_from(spec.node_bytes / spec.block_bytes)
        .ok()
        .filter(|slots| *slots > 0)
        .context("a node's memory must hold at least one block, and less than 2^32")?;
    let mut cluster = ClusterSpec {
        nodes: spec.nodes,
        slots,
        policy: PolicyKind::default(),
        ssd: None,
        metadata: Metadata::Alone,
        deployment,
        members_interval: MEMBERS_EVERY,
    };
    let block_bytes = cluster.deployment.block_bytes;
    let alone = phase(spec, &cluster, &workload, "every node alone").await?;
    cluster.metadata = spec.metadata.clone();
    let together = phase(spec, &cluster, &workload, "nodes as a cluster").await?;
    Ok(DemoReport {
        nodes: spec.nodes,
        engines,
        block_bytes,
        node_blocks: slots,
        seed: spec.seed,
        alone,
        cluster: together,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Plays the workload on a fresh cluster.
async fn phase(
    spec: &DemoSpec,
    cluster: &ClusterSpec,
    workload: &ChatWorkload,
    what: &str,
) -> Result<Summary> {
    let running = LocalCluster::start(cluster).await?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let computing = Arc::new(Semaphore::new((processors / 2).max(1)));
    let mut engines = Vec::new();
    for number in 0..spec.nodes * spec.engines_per_node {
        let cache = running.attach(number % spec.nodes).await?;
        engines.push(Arc::new(Engine::new(
            cache,
            spec.load_deadline,
            computing.clone(),
        )));
    }
    let bar = progress(workload.requests() as u64, what);
    let mut tally = Tally::new(cluster.deployment.block_bytes);
    for round in &workload.rounds {
        play(&engines, round, &mut tally, &bar).await?;
    }
    bar.finish_and_clear();
    drop(engines);
    running.stop().await;
    Ok(tally.summary())
}

/// Plays one round: every engine its requests, one after the other, all engines at once.
async fn play(
    engines: &[Arc<Engine>],
    round: &[ChatRequest],
    tally: &mut Tally,
    bar: &ProgressBar,
) -> Result<()> {
    let mut running = JoinSet::new();
    for (number, engine) in engines.iter().enumerate() {
        let mine = round.iter().filter(|request| request.engine == number);
        let mine: Vec<_> = mine.map(|request| request.keys.clone()).collect();
        let engine = engine.clone();
        running.spawn(async move {
            let mut outcomes = Vec::new();
            for keys in mine {
                outcomes.push(engine.run(&keys).await?);
            }
            Ok::<Vec<Outcome>, CacheError>(outcomes)
        });
    }
    while let Some(ended) = running.join_next().await {
        for outcome in ended.context("an engine panicked")?? {
            tally.add(&outcome);
            bar.inc(1);
        }
    }
    bar.set_message(crate::report::percent(tally.hit_rate()));
    Ok(())
}
