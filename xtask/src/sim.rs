//! `cargo xtask sim`: whole clusters in one process, from seeds.
//!
//! Knows nothing of the simulation beyond its command line.

use anyhow::Result;

use crate::shell::Run;

/// Simulates clusters with faults, one per seed.
///
/// A seed decides everything: nodes, prompts, faults, and the order of events. A failure prints
/// its seed; the same seed fails again in the same way.
///
///   cargo xtask sim                    1000 seeds, from 0
///
///   cargo xtask sim --seeds 100000     more of them
///
///   cargo xtask sim --seed 4711        one seed, again, with all its events
///
///   cargo xtask sim -- --scale 100     no faults, but 100 nodes, and what they take
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How many seeds to run (1000 unless --seed is given, then 1)
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Arguments for the simulation itself
    #[arg(last = true)]
    rest: Vec<String>,
}

/// How many seeds run if nobody says otherwise.
const SEEDS: u64 = 1000;

/// Runs the simulation.
pub(crate) fn run(args: &Args) -> Result<()> {
    command(args).run()
}

/// A short run, as CI does it.
pub(crate) fn short() -> Run {
    command(&Args {
        seeds: Some(SEEDS),
        seed: None,
        rest: Vec::new(),
    })
}

fn command(args: &Args) -> Run {
    let seeds = match (args.seeds, args.seed) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => 1,
        (None, None) => SEEDS,
    };
    let mut run = Run::cargo("run --release --package flexkv-sim --bin flexkv-sim --");
    run = run.args(["--seeds", &seeds.to_string()]);
    if let Some(seed) = args.seed {
        run = run.args(["--seed", &seed.to_string()]);
    }
    run.args(&args.rest)
}

#[cfg(test)]
mod tests;
