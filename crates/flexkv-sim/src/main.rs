//! Runs seeds of the simulation and prints how to replay one that fails.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use flexkv_sim::{Options, Plant, run};

/// Simulates a cluster in virtual time, one seed after the other, and checks that bytes are right,
/// that the index converges after faults, and that nothing leaks.
#[derive(Parser)]
struct Cli {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; with `--seeds 1` its events are printed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Plant a bug, which the simulation should find.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Seeds to run at once.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let next = AtomicU64::new(cli.seed);
    let end = cli.seed.saturating_add(cli.seeds);
    let (failures, remote) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..cli.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let report = run(Options {
                        seed,
                        plant: cli.plant,
                    });
                    remote.fetch_add(report.remote_blocks as u64, Ordering::Relaxed);
                    if let Some(failure) = &report.failure {
                        failures.fetch_add(1, Ordering::Relaxed);
                        say(&format!("seed {seed} FAILED: {failure}"));
                        say(&format!(
                            "replay it: cargo xtask sim --seeds 1 --seed {seed}"
                        ));
                    }
                    if cli.seeds == 1 {
                        report.events.iter().for_each(|line| say(line));
                    }
                }
            });
        }
    });
    let (failed, remote) = (failures.into_inner(), remote.into_inner());
    say(&format!("simulated {remote} blocks fetched from peers"));
    say(&format!(
        "seeds: {} passed, {failed} failed",
        cli.seeds - failed
    ));
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn say(line: &str) {
    use std::io::Write as _;
    // A closed pipe is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
}
