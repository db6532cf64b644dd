//! One run: a cluster, engines, an adversary, quiet, one more trouble, and the checkers' verdicts.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_node::Admission;

use crate::checkers::{bounds, convergence, leaks, repeat, serving};
use crate::cluster::{Cluster, Shape};
use crate::events::Events;
use crate::faults::adversary;
use crate::observer::observe;
use crate::plant::Plant;
use crate::workload::{Job, engine, prompts};

/// How long faults rage.
const STORM: Duration = Duration::from_secs(40);
/// After this, all that a storm left undone is done: paused retries, renewals, probes of idle logs.
const SETTLED: Duration = Duration::from_secs(15);
/// By how much the clocks of nodes differ that were started at different times.
const HOURS: Duration = Duration::from_secs(2 * 3600);

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// A bug to plant, to see whether it is found.
    pub plant: Option<Plant>,
    /// Run the seed twice and compare.
    pub repeat: bool,
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What happened, in order, with virtual times.
    pub events: Vec<String>,
    /// Blocks that engines got from peers.
    pub remote_blocks: usize,
    /// How long the cluster took to converge after the last fault and the last request.
    pub converged_after: Duration,
    /// What is wrong, if anything is.
    pub failure: Option<String>,
}

/// Runs one seed to its end, in virtual time.
pub fn run(options: Options) -> Report {
    let mut report = run_once(options);
    if options.repeat && report.failure.is_none() {
        let again = run_once(options);
        report.failure = repeat::check(&report.events, &again.events).err();
    }
    report
}

/// A runtime with virtual time.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| unreachable!("a runtime without I/O needs nothing: {error}"))
}

fn run_once(options: Options) -> Report {
    runtime().block_on(scenario(options))
}

async fn scenario(options: Options) -> Report {
    let mut report = Report {
        events: Vec::new(),
        remote_blocks: 0,
        converged_after: Duration::ZERO,
        failure: None,
    };
    let events = Events::new();
    report.failure = play(options, &events, &mut report).await.err();
    if let Some(failure) = &report.failure {
        events.note(format!("FAILED: {failure}"));
    }
    report.events = events.take();
    report
}

fn shape(rng: &mut fastrand::Rng) -> Shape {
    Shape {
        nodes: rng.usize(2..6),
        slots: rng.u32(6..60),
        ssd_slots: if rng.bool() { rng.u32(1..200) } else { 0 },
        admission: [Admission::Computed, Admission::Reused, Admission::All][rng.usize(..3)],
        block_bytes: rng.usize(16..200),
        twins: rng.u8(..4) == 0,
        entry_blocks: if rng.bool() { 8 } else { 4096 },
        queue_bytes: if rng.bool() { 1 << 10 } else { 16 << 20 },
        rotate_bytes: if rng.bool() { 1 << 8 } else { 1 << 20 },
        store_bytes_per_second: if rng.bool() { 100_000 } else { 100_000_000 },
    }
}

async fn play(options: Options, events: &Events, report: &mut Report) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let shape = shape(&mut rng);
    events.note(format!("seed {}: {shape:?}", options.seed));
    let cluster = Arc::new(Cluster::new(shape, options.plant, &mut rng));
    let observer = tokio::spawn(observe(cluster.clone(), events.clone()));
    start(&cluster, &mut rng, events).await;
    let count = rng.usize(5..40);
    let prompts = Arc::new(prompts(&mut rng, count));

    let storm = storm(&cluster, &prompts, &mut rng, events);
    tokio::select! {
        biased;
        served = storm => report.remote_blocks = served?,
        wrong = observer => return Err(wrong.map_err(|error| error.to_string())?),
    }
    report.converged_after = convergence::check(&cluster, &prompts).await?;
    events.note(format!("converged after {:?}", report.converged_after));
    leaks::check(&cluster)?;
    tokio::time::sleep(SETTLED).await;
    serving::check(&cluster, &prompts, &mut rng, events).await?;
    bounds::leftovers(&cluster).await
}

/// Starts all nodes; in some runs one of them hours after the one before, so that their clocks, which
/// count from their start, have nothing in common.
async fn start(cluster: &Cluster, rng: &mut fastrand::Rng, events: &Events) {
    let apart = rng.usize(..12 * cluster.shape().nodes);
    for (i, name) in cluster.names().enumerate() {
        if i > 0 && i == apart {
            tokio::time::sleep(HOURS).await;
            events.note(format!("{name} starts hours after the others"));
        }
        cluster.start(&name);
    }
}

/// Engines and the adversary, until both are done; says how many blocks came from peers.
async fn storm(
    cluster: &Arc<Cluster>,
    prompts: &Arc<Vec<Vec<BlockKey>>>,
    rng: &mut fastrand::Rng,
    events: &Events,
) -> Result<usize, String> {
    let (mut remote, mut engines) = (0, Vec::new());
    let adversary = adversary(cluster.clone(), rng.fork(), STORM, events.clone());
    let adversary = tokio::spawn(adversary);
    let pace = rng.u64(50..400);
    for id in 0..rng.usize(1..7) {
        let job = Job {
            id,
            requests: rng.usize(10_000..40_000) / pace as usize,
            pause: Duration::from_millis(pace),
        };
        let engine = engine(
            job,
            cluster.clone(),
            prompts.clone(),
            rng.fork(),
            events.clone(),
        );
        engines.push(tokio::spawn(engine));
    }
    for engine in engines {
        remote += engine.await.map_err(|error| error.to_string())??;
    }
    adversary.await.map_err(|error| error.to_string())?;
    Ok(remote)
}

#[cfg(test)]
mod tests;
