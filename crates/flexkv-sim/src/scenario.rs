//! One run: a cluster, engines, an adversary, quiet, and the checkers' verdict.

use std::sync::Arc;
use std::time::Duration;

use crate::checkers::{convergence, leaks};
use crate::cluster::{Cluster, Shape};
use crate::events::Events;
use crate::faults::adversary;
use crate::plant::Plant;
use crate::workload::{engine, prompts};

/// How long faults rage.
const STORM: Duration = Duration::from_secs(40);
/// Within this virtual time after the last fault and the last request the index has converged:
/// lease (10 s) + grace for missing members (5 s) + two readings of the member list.
const CONVERGED_AFTER: Duration = Duration::from_secs(25);

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// A bug to plant, to see whether it is found.
    pub plant: Option<Plant>,
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What happened, in order, with virtual times.
    pub events: Vec<String>,
    /// Blocks that engines got from peers.
    pub remote_blocks: usize,
    /// What is wrong, if anything is.
    pub failure: Option<String>,
}

/// Runs one seed to its end, in virtual time.
pub fn run(options: Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| unreachable!("a runtime without I/O needs nothing: {error}"));
    runtime.block_on(scenario(options))
}

async fn scenario(options: Options) -> Report {
    let events = Events::new();
    let mut remote_blocks = 0;
    let failure = play(options, &events, &mut remote_blocks).await.err();
    if let Some(failure) = &failure {
        events.note(format!("FAILED: {failure}"));
    }
    Report {
        events: events.take(),
        remote_blocks,
        failure,
    }
}

async fn play(options: Options, events: &Events, remote: &mut usize) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let shape = Shape {
        nodes: rng.usize(2..6),
        slots: rng.u32(6..60),
        block_bytes: rng.usize(16..200),
    };
    events.note(format!("seed {}: {shape:?}", options.seed));
    let cluster = Arc::new(Cluster::new(shape, options.plant, &mut rng));
    (0..shape.nodes).for_each(|i| cluster.start(&Cluster::name(i)));
    let count = rng.usize(5..40);
    let prompts = Arc::new(prompts(&mut rng, count));

    let adversary = tokio::spawn(adversary(
        cluster.clone(),
        rng.fork(),
        STORM,
        events.clone(),
    ));
    let mut engines = Vec::new();
    for id in 0..rng.usize(1..7) {
        let requests = rng.usize(20..100);
        engines.push(tokio::spawn(engine(
            id,
            cluster.clone(),
            prompts.clone(),
            rng.fork(),
            requests,
            events.clone(),
        )));
    }
    for engine in engines {
        *remote += engine.await.map_err(|error| error.to_string())??;
    }
    adversary.await.map_err(|error| error.to_string())?;
    tokio::time::sleep(CONVERGED_AFTER).await;
    convergence::check(&cluster, &prompts).await?;
    leaks::check(&cluster)
}

#[cfg(test)]
mod tests;
