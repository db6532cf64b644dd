//! Runs seeds of the simulation and prints how to replay one that fails; or one large cluster, and
//! prints what it takes.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Parser, ValueEnum as _};
use flexkv_sim::{Options, Plant, Report, ScaleOptions, run, scale};

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
    /// Instead of seeds with faults, one cluster of so many nodes, and what it takes.
    #[arg(long, value_name = "NODES")]
    scale: Option<usize>,
    /// With --scale: blocks that each active node stores in a second.
    #[arg(long, default_value_t = 10)]
    rate: u64,
    /// With --scale: how many nodes store blocks; all if left out.
    #[arg(long)]
    active: Option<usize>,
    /// With --scale: what all nodes may exchange with the store in a second, in bytes.
    #[arg(long, default_value_t = 100_000_000)]
    budget: u64,
    /// With --scale: blocks that each node has room for.
    #[arg(long, default_value_t = 64)]
    slots: u32,
    /// With --scale: for how many seconds of virtual time it is measured.
    #[arg(long, default_value_t = 60)]
    measured: u64,
}

/// One seed in so many is run twice, and the runs compared.
const REPEAT_EVERY: u64 = 50;
/// So many of the last events are printed with a failure.
const EVENTS_SHOWN: usize = 40;

/// What all seeds came to.
#[derive(Default)]
struct Sums {
    failed: AtomicU64,
    remote: AtomicU64,
    converged_after: Mutex<Vec<Duration>>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(nodes) = cli.scale {
        return measure(&cli, nodes);
    }
    let sums = Sums::default();
    let next = AtomicU64::new(cli.seed);
    let end = cli.seed.saturating_add(cli.seeds);
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
                        repeat: seed.is_multiple_of(REPEAT_EVERY) || cli.seeds == 1,
                    });
                    tell(&cli, seed, &report);
                    sums.add(&report);
                }
            });
        }
    });
    sums.finish(cli.seeds)
}

/// Prints what a failing seed went through last and how to see all of it; a single seed's events.
fn tell(cli: &Cli, seed: u64, report: &Report) {
    let mut lines = Vec::new();
    if cli.seeds == 1 {
        lines.extend(report.events.iter().cloned());
    }
    if let Some(failure) = &report.failure {
        if cli.seeds > 1 {
            let from = report.events.len().saturating_sub(EVENTS_SHOWN);
            lines.push(format!(
                "seed {seed}: its last events, with seconds of virtual time"
            ));
            lines.extend(report.events[from..].iter().cloned());
        }
        lines.push(format!("seed {seed} FAILED: {failure}"));
        let plant = cli.plant.and_then(|plant| plant.to_possible_value());
        let plant = plant.map_or(String::new(), |value| {
            format!(" -- --plant {}", value.get_name())
        });
        lines.push(format!(
            "replay it, with all its events: cargo xtask sim --seed {seed}{plant}"
        ));
    }
    say(&lines.join("\n"));
}

impl Sums {
    fn add(&self, report: &Report) {
        self.remote
            .fetch_add(report.remote_blocks as u64, Ordering::Relaxed);
        if report.failure.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut times) = self.converged_after.lock() {
            times.push(report.converged_after);
        }
    }

    fn finish(self, seeds: u64) -> ExitCode {
        let (failed, remote) = (self.failed.into_inner(), self.remote.into_inner());
        let mut times = self.converged_after.into_inner().unwrap_or_default();
        times.sort_unstable();
        let at = |percent: usize| {
            let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(at).map_or(0.0, Duration::as_secs_f64)
        };
        say(&format!(
            "converged after {:.1} s of virtual time (median), {:.1} s (p99), {:.1} s (longest)",
            at(50),
            at(99),
            at(100)
        ));
        say(&format!("simulated {remote} blocks fetched from peers"));
        say(&format!(
            "seeds: {} passed, {failed} failed",
            seeds - failed
        ));
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli, nodes: usize) -> ExitCode {
    let measured = scale(ScaleOptions {
        seed: cli.seed,
        nodes,
        active: cli.active.unwrap_or(nodes).min(nodes),
        blocks_per_second: cli.rate,
        slots: cli.slots,
        store_bytes_per_second: cli.budget,
        measured: Duration::from_secs(cli.measured),
    });
    match measured {
        Ok(lines) => {
            say(&lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            say(&format!("{nodes} nodes FAILED: {wrong}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    use std::io::Write as _;
    if text.is_empty() {
        return;
    }
    // A closed pipe is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}
