//! `flexkv replay`: its arguments and its table. How a trace is played is known to `replay`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::Again;
use crate::cluster::{ClusterSpec, Deployment, MEMBERS_EVERY, Metadata, connect};
use crate::replay::{ReplayReport, replay};
use crate::report::table;
use crate::trace::{self, TraceKeys};
use crate::units::{parse_bytes, parse_duration, show_bytes, show_count};

/// Play a trace of requests on a cluster and tell how much of it the cache serves.
///
/// The trace has one JSON object a line, in the form of the Mooncake traces: `timestamp` (ms),
/// `input_length` and `output_length` (tokens), `hash_ids` (one id per 512 tokens of the prompt;
/// equal ids mean equal prefixes). Requests are played in file order, dealt round-robin to the
/// nodes, as fast as they are done. Blocks have bytes made from their keys, and every byte that the
/// cache returns is checked.
///
///   flexkv replay --trace trace.jsonl --nodes 4           # four nodes that share
///   flexkv replay --trace trace.jsonl --nodes 4 --alone   # the same without sharing
///   flexkv replay --trace trace.jsonl --nodes 10 --redis redis://127.0.0.1:6379 --processes --json
///
/// With --processes every node is a process of its own, and may die: the replay goes on without it.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct ReplayArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Nodes to start
    #[arg(long, value_name = "N", default_value = "4", value_parser = super::node_count())]
    nodes: usize,
    /// Nodes do not share: what each would serve alone
    #[arg(long)]
    alone: bool,
    /// Tokens whose blocks each node keeps
    #[arg(long, value_name = "T", default_value_t = 3_000_000)]
    node_tokens: u64,
    /// Tokens of a block; the trace itself knows only what prompts share in units of 512
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    block_tokens: u32,
    /// Bytes of a block, such as 64KiB; real ones are larger, which changes no hit rate
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = parse_bytes)]
    block_bytes: u64,
    /// Let nodes find each other through this Redis, such as redis://127.0.0.1:6379; the password
    /// may be in FLEXKV_REDIS_PASSWORD. Without it they use memory of this process
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Run every node as a process of its own (needs --redis, unless --alone)
    #[arg(long)]
    processes: bool,
    /// Play only the first requests
    #[arg(long, value_name = "REQUESTS")]
    limit: Option<usize>,
    /// Longest wait for the blocks of one prompt
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    load_deadline: Duration,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ReplayArgs, again: &Again, out: &mut dyn Write) -> Result<()> {
    let requests = trace::read(&args.trace, args.limit)?;
    let spec = args.cluster()?;
    if let Metadata::Redis(redis) = &spec.metadata {
        // Said once and clearly here, instead of by every node.
        connect(redis, &spec.deployment).await?;
    }
    let program = args.processes.then(|| again.command()).transpose()?;
    let Deployment { secret, root, .. } = spec.deployment.clone();
    let keys = TraceKeys::new(secret, root, args.block_tokens as usize);
    let tell = |pids: &[Option<u32>]| {
        let pids: Vec<String> = pids.iter().flatten().map(u32::to_string).collect();
        // Nobody may be reading standard error.
        let _ = writeln!(std::io::stderr(), "node processes: {}", pids.join(" "));
    };
    let deadline = args.load_deadline;
    let report = replay(&spec, program.as_deref(), &requests, &keys, deadline, tell).await?;
    if args.json {
        super::print_json(out, &report)?;
    } else {
        super::print(out, &show(&report, args.alone))?;
    }
    match report.summary.corrupt_blocks {
        0 => Ok(()),
        corrupt => bail!("{corrupt} blocks had wrong bytes"),
    }
}

impl ReplayArgs {
    fn cluster(&self) -> Result<ClusterSpec> {
        if self.processes && self.redis.is_none() && !self.alone {
            return Err(super::usage(
                "--processes needs --redis URL: processes have no memory in common to find each other",
            ));
        }
        let slots = self.node_tokens / u64::from(self.block_tokens);
        if slots == 0 {
            return Err(super::usage(
                "--node-tokens holds no block of --block-tokens",
            ));
        }
        let slots = u32::try_from(slots).map_err(|_| super::usage("--node-tokens is too large"))?;
        let metadata = match &self.redis {
            _ if self.alone => Metadata::Alone,
            Some(url) => Metadata::Redis(super::redis(url)),
            None => Metadata::Embedded,
        };
        Ok(ClusterSpec {
            nodes: self.nodes,
            slots,
            metadata,
            deployment: Deployment::synthetic(self.block_tokens, self.block_bytes)?,
            members_interval: MEMBERS_EVERY,
        })
    }
}

fn show(report: &ReplayReport, alone: bool) -> String {
    let how = if alone { "alone" } else { "as a cluster" };
    let row = |(what, much): (&str, String)| vec![what.to_owned(), much];
    let mut rows: Vec<Vec<String>> = report.summary.rows().into_iter().map(row).collect();
    rows.push(row(("dead nodes", report.dead_nodes.to_string())));
    rows.push(row(("seconds", format!("{:.1}", report.seconds))));
    let title = format!(
        "{} nodes {how}, {} blocks of {} each",
        report.nodes,
        show_count(report.node_blocks.into()),
        show_bytes(report.block_bytes as u64)
    );
    table(&[&title, ""], rows)
}
