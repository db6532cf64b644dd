//! `flexkv bench`: its arguments and its table. What is measured is known to `bench`.

mod serve;
mod ssd;
mod transport;

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::Again;
use crate::bench::{Row, index, store};
use crate::report::table;
use crate::units::parse_duration;

/// Measure this machine, or serving instances: a row per value, with targets and what others have.
///
/// Timings are of this machine and this moment: run twice, and on an idle machine. --json prints
/// an array of rows {name, value, unit, better, target, peer, peer_value} for scripts.
///
///   flexkv bench index
///   flexkv bench index --json > today.json
///   flexkv bench store --redis redis://127.0.0.1:6379
///   flexkv bench store --redis redis://127.0.0.1:6379 --followers 2,4,8,16
///   flexkv bench ssd --dir /data
///   flexkv bench transport
///   flexkv bench serve --base-url http://127.0.0.1:30001 --instances 2
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment)]
pub(super) enum BenchCommand {
    Index(IndexArgs),
    Store(StoreArgs),
    Serve(serve::ServeArgs),
    Ssd(ssd::SsdArgs),
    Transport(transport::TransportArgs),
}

/// The global index in memory: hashing, matching, locating, applying, memory.
#[derive(Debug, Args)]
pub(super) struct IndexArgs {
    /// Block replicas in the index
    #[arg(long, value_name = "N", default_value_t = index::DEFAULT_REPLICAS,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000_000))]
    blocks: usize,
    /// Print an array of rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// The metadata store on a Redis server: publishing, a newcomer, visibility, memory, idle cost.
///
/// Starts four node processes. What the server does for others at the same time is counted too, so
/// let nobody else use it meanwhile. All that is written expires or is deleted.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct StoreArgs {
    /// The Redis server; its password may be given as FLEXKV_REDIS_PASSWORD
    #[arg(long, value_name = "URL")]
    redis: String,
    /// Blocks that one node publishes
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000_000))]
    blocks: usize,
    /// How long nodes are watched, once under load and once idle
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse_duration)]
    watch: Duration,
    /// Instead: clusters of so many nodes, one of which changes blocks. What server and followers
    /// spend, beside the formulas of docs/scale.md
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with = "blocks",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=100))]
    followers: Vec<usize>,
    /// Print an array of rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    command: BenchCommand,
    again: &Again,
    runtime: &Runtime,
    out: &mut dyn Write,
) -> Result<()> {
    match command {
        BenchCommand::Index(args) => run_index(&args, out),
        BenchCommand::Store(args) => {
            runtime.block_on(super::unless_interrupted(run_store(args, again, out)))
        }
        BenchCommand::Serve(args) => {
            runtime.block_on(super::unless_interrupted(serve::run(args, out)))
        }
        BenchCommand::Ssd(args) => runtime.block_on(super::unless_interrupted(ssd::run(args, out))),
        BenchCommand::Transport(args) => {
            runtime.block_on(super::unless_interrupted(transport::run(args, again, out)))
        }
    }
}

fn run_index(args: &IndexArgs, out: &mut dyn Write) -> Result<()> {
    print_rows(&index::run(args.blocks), args.json, out)
}

async fn run_store(args: StoreArgs, again: &Again, out: &mut dyn Write) -> Result<()> {
    if !args.followers.is_empty() {
        let plan = store::FollowersPlan {
            redis: super::redis(&args.redis),
            nodes: args.followers,
            watch: args.watch,
            program: again.command()?,
        };
        let rows = store::followers(&plan).await?;
        return match args.json {
            true => super::print_json(out, &rows),
            false => super::print(out, &show_checked(&rows)),
        };
    }
    let plan = store::Plan {
        redis: super::redis(&args.redis),
        blocks: args.blocks,
        watch: args.watch,
        program: again.command()?,
    };
    print_rows(&store::run(&plan).await?, args.json, out)
}

fn print_rows(rows: &[Row], json: bool, out: &mut dyn Write) -> Result<()> {
    if json {
        super::print_json(out, &rows)
    } else {
        super::print(out, &show(rows))
    }
}

fn number(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

fn show_checked(rows: &[store::Checked]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.name.to_owned(),
            row.nodes.to_string(),
            format!("{:.0}", row.changes),
            format!("{:.0}", row.entries),
            format!("{} {}", number(row.measured), row.unit),
            number(row.formula),
            format!("{:.2}", row.ratio),
        ]
    });
    let header = [
        "",
        "nodes",
        "changes/s",
        "entries/s",
        "measured",
        "formula",
        "ratio",
    ];
    table(&header, cells.collect())
}

fn show(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        let peer = row
            .peer_value
            .map(|value| format!("{} {}", number(value), row.peer.unwrap_or_default()));
        vec![
            row.name.clone(),
            format!("{} {}", number(row.value), row.unit),
            row.target.map(number).unwrap_or_default(),
            peer.unwrap_or_default(),
        ]
    });
    table(&["", "value", "target", "peer"], cells.collect())
}
