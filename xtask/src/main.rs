//! `cargo xtask`: the one driver of checks, integration runs, simulation, fuzzing and benchmarks.
//!
//! What CI runs is `cargo xtask ci` and nothing else. Knows nothing of what the crates do; it
//! starts cargo and reads source text.

mod bench;
mod ci;
mod fuzz;
mod it;
mod python;
mod rdma;
mod shell;
mod sim;
mod tidy;
mod tools;
mod vllm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, checks and measures the workspace.
///
/// Start with `cargo xtask ci`: it runs all that CI runs, in order, and stops at the first failure.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ci(ci::Args),
    Tidy(tidy::Args),
    It(it::Args),
    Sim(sim::Args),
    Fuzz(fuzz::Args),
    Python(python::Args),
    Rdma(rdma::Args),
    Vllm(vllm::Args),
    Bench(bench::BenchArgs),
    Demo(bench::DemoArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Ci(args) => ci::run(&args),
        Command::Tidy(args) => done(tidy::run(&args)),
        Command::It(args) => done(it::run(&args)),
        Command::Sim(args) => done(sim::run(&args)),
        Command::Fuzz(args) => done(fuzz::run(&args)),
        Command::Python(args) => done(python::run(&args)),
        Command::Rdma(args) => done(rdma::run(&args)),
        Command::Vllm(args) => done(vllm::run(&args)),
        Command::Bench(args) => done(bench::run(&args)),
        Command::Demo(args) => done(bench::demo(&args)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            shell::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn done(outcome: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
