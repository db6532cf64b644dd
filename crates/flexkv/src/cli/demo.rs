//! `flexkv demo`: its arguments and its table. What is played is known to `demo`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cluster::Metadata;
use crate::demo::{DemoReport, DemoSpec, demo};
use crate::report::table;
use crate::units::{parse_bytes, show_bytes, show_count};

/// Longest wait for the blocks of a prompt.
const LOAD_DEADLINE: Duration = Duration::from_secs(10);

/// Watch nodes reuse each other's KV blocks: a chat workload in one process, no services needed.
///
/// Starts nodes, each with its own memory, TCP server and engine socket, and engines that attach as
/// engine processes do. Conversations over shared system prompts go on at ever other engines, as a
/// load balancer deals them. The workload is played twice, every node alone and all as a cluster;
/// engines fill blocks with bytes made from tokens and check every byte that comes back.
///
///   flexkv demo
///   flexkv demo --nodes 8 --requests 2000 --seed 7
///   flexkv demo --redis redis://127.0.0.1:6379   # nodes find each other through Redis
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct DemoArgs {
    /// Nodes to start
    #[arg(long, value_name = "N", default_value = "4", value_parser = super::node_count())]
    nodes: usize,
    /// Engines at each node
    #[arg(long, value_name = "N", default_value = "2", value_parser = super::node_count())]
    engines: usize,
    /// Requests to play, twice
    #[arg(long, value_name = "N", default_value_t = 600)]
    requests: usize,
    /// Seed of the workload: the same seed plays the same requests
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Tokens of a block
    #[arg(long, value_name = "TOKENS", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    block_tokens: u32,
    /// Bytes of a block
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_bytes)]
    block_bytes: u64,
    /// Memory of each node
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_bytes)]
    node_memory: u64,
    /// Let nodes find each other through this Redis, such as redis://127.0.0.1:6379; the password
    /// may be in FLEXKV_REDIS_PASSWORD. Without it they use memory of this process
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DemoArgs, out: &mut dyn Write) -> Result<()> {
    if args.block_bytes == 0 || args.node_memory < args.block_bytes {
        return Err(super::usage(
            "--node-memory must hold at least one block of --block-bytes",
        ));
    }
    let report = demo(&DemoSpec {
        nodes: args.nodes,
        engines_per_node: args.engines,
        requests: args.requests,
        seed: args.seed,
        block_tokens: args.block_tokens,
        block_bytes: args.block_bytes,
        node_bytes: args.node_memory,
        metadata: match &args.redis {
            Some(url) => Metadata::Redis(super::redis(url)),
            None => Metadata::Embedded,
        },
        load_deadline: LOAD_DEADLINE,
    })
    .await?;
    if args.json {
        super::print_json(out, &report)?;
    } else {
        super::print(out, &show(&report))?;
    }
    match report.corrupt_blocks() {
        0 => Ok(()),
        corrupt => bail!("{corrupt} blocks had wrong bytes"),
    }
}

fn show(report: &DemoReport) -> String {
    let alone = report.alone.rows().into_iter();
    let rows = alone
        .zip(report.cluster.rows())
        .map(|((what, alone), (_, cluster))| vec![what.to_owned(), alone, cluster])
        .collect();
    let table = table(&["", "every node alone", "as a cluster"], rows);
    format!(
        "{table}\n{} nodes of {} blocks of {}, {} engines, seed {}, {:.1} s",
        report.nodes,
        show_count(report.node_blocks.into()),
        show_bytes(report.block_bytes as u64),
        report.engines,
        report.seed,
        report.seconds
    )
}
