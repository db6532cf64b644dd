//! The command line: what can be asked, how it is explained, and how an answer is printed.
//!
//! Wires arguments to the modules that do the work, and knows nothing of how they do it. Exit codes:
//! 0 done, 1 failed, 2 wrong usage, 130 interrupted.

mod bench;
mod demo;
mod devices;
mod launch;
mod node;
mod replay;
mod reset;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use flexkv_redis::TlsFiles;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{PASSWORD_VARIABLE, RedisSetting};
use crate::launch::EndedEarly;

/// Environment variable with the log filter.
const LOG_VARIABLE: &str = "FLEXKV_LOG";
/// Fewest threads of the runtime: simulated engines compute on them, and nodes must not wait.
const MIN_THREADS: usize = 4;
/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Distributed reuse of LLM KV caches.
///
/// Serving engines keep the KV cache of every prompt block; nodes of a cluster find each other
/// through Redis and fetch blocks from whoever has them. See it work, without any service:
///
///   flexkv demo
///
/// Run a node of a real cluster:
///
///   flexkv node --example-config > node.toml
///   flexkv node --config node.toml
///
/// Start vLLM instances that reuse each other's KV cache, and measure them:
///
///   flexkv serve 2 30001 --model ./Qwen3-8B
///   flexkv bench serve --base-url http://127.0.0.1:30001 --instances 2
///
/// Find out what a cluster would save you, from a trace of your own traffic:
///
///   flexkv replay --trace trace.jsonl --nodes 4
///
/// Every command explains itself: flexkv COMMAND --help. Logs go to standard error; FLEXKV_LOG
/// chooses them, such as FLEXKV_LOG=debug or FLEXKV_LOG=flexkv_node=trace.
#[derive(Debug, Parser)]
#[command(name = "flexkv", version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Node(node::NodeArgs),
    Serve(launch::ServeArgs),
    Replay(replay::ReplayArgs),
    Reset(reset::ResetArgs),
    Devices(devices::DevicesArgs),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// How this command is started again, as a process of its own.
#[derive(Clone, Debug)]
pub enum Again {
    /// It is the program that runs.
    Itself,
    /// It is part of another program: that one with these first arguments.
    Command(Vec<OsString>),
}

impl Again {
    fn command(&self) -> Result<Vec<OsString>> {
        match self {
            Self::Itself => {
                let program = std::env::current_exe().context("cannot find this program")?;
                Ok(vec![program.into()])
            }
            Self::Command(command) => Ok(command.clone()),
        }
    }
}

/// Runs the command with the arguments `args`, the first of which is the program's name. `again`
/// starts it for whatever runs in processes of its own.
pub fn run(args: impl IntoIterator<Item = OsString>, again: &Again) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that cannot be printed has no other place to go.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr(&cli.command);
    let mut out = std::io::stdout();
    match dispatch(cli.command, again, &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; the exit code says it too.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn dispatch(command: Command, again: &Again, out: &mut dyn Write) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(MIN_THREADS, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(MIN_THREADS))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = match command {
        Command::Demo(args) => runtime.block_on(unless_interrupted(demo::run(args, out))),
        Command::Node(args) => runtime.block_on(node::run(args, out)),
        Command::Serve(args) => runtime.block_on(launch::run(args, out)),
        Command::Replay(args) => {
            runtime.block_on(unless_interrupted(replay::run(args, again, out)))
        }
        Command::Reset(args) => runtime.block_on(unless_interrupted(reset::run(args, out))),
        Command::Devices(args) => devices::run(&args, out),
        Command::Bench(command) => bench::run(command, again, &runtime, out),
    };
    // A read of standard input may be waiting for ever.
    runtime.shutdown_background();
    done
}

/// The user, or whoever started us, wants us to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{0}; see --help")]
struct Usage(String);

fn usage(reason: impl std::fmt::Display) -> anyhow::Error {
    Usage(reason.to_string()).into()
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Interrupted>() || error.is::<EndedEarly>() {
        INTERRUPTED
    } else if error.is::<Usage>() {
        2
    } else {
        1
    }
}

/// Runs `work` to its end, or drops it, and with it all it started, at a signal to end.
async fn unless_interrupted(work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(Interrupted.into()),
        _ = terminate.recv() => Err(Interrupted.into()),
    }
}

/// A node tells what happens to it; the others only what went wrong.
fn log_to_stderr(command: &Command) {
    let default = match command {
        Command::Node(_) => "info",
        _ => "error",
    };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    // Fails only if the program that uses this library has its own subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// How many nodes a command can start.
fn node_count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=64)
}

/// Redis at `url`, with the password of the environment if there is one.
fn redis(url: &str) -> RedisSetting {
    RedisSetting {
        url: url.to_owned(),
        password: password(),
        tls: TlsFiles::default(),
    }
}

fn password() -> Option<String> {
    std::env::var(PASSWORD_VARIABLE)
        .ok()
        .filter(|password| !password.is_empty())
}

/// Prints `value` as one line of JSON.
fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value)?;
    print(out, &text)
}

/// Prints `text` and a line end. A reader that has gone away needs no answer.
fn print(out: &mut dyn Write, text: &str) -> Result<()> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print the result"),
    }
}
