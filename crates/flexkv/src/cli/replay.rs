//! `flexkv replay`: its arguments and its table. How a trace is played is known to `replay`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use flexkv_index::PolicyKind;
use flexkv_node::Admission;

use super::Again;
use crate::cluster::{ClusterSpec, ClusterSsd, Deployment, MEMBERS_EVERY, Metadata, connect};
use crate::config::parse_admission;
use crate::replay::{Play, ReplayReport, replay};
use crate::report::{percent, table};
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
    /// What nodes give up first: lru, half-age, lfu, slru, fifo or s3-fifo
    #[arg(long, value_name = "POLICY", default_value_t)]
    policy: PolicyKind,
    /// Tokens whose blocks each node keeps on SSD besides
    #[arg(long, value_name = "T")]
    ssd_tokens: Option<u64>,
    /// Where to make their files [default: the folder of temporary files]
    #[arg(long, value_name = "DIR", requires = "ssd_tokens")]
    ssd_dir: Option<PathBuf>,
    /// Which blocks are written to SSD: what engines compute (computed), what is used again while in
    /// memory (reused), or everything that comes into memory (all)
    #[arg(long, value_name = "RULE", default_value = "computed", value_parser = parse_admission)]
    ssd_admission: Admission,
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
    /// Kill all node processes after so many requests and start them again, with what their SSDs kept
    #[arg(long, value_name = "REQUESTS", requires = "processes")]
    restart_after: Option<usize>,
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
    let play = Play {
        requests: &requests,
        keys: &keys,
        load_deadline: args.load_deadline,
        restart_after: args.restart_after,
    };
    let report = replay(&spec, program.as_deref(), &play, tell).await?;
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
        let slots = self.slots("--node-tokens", self.node_tokens)?;
        let ssd_slots = self
            .ssd_tokens
            .map(|tokens| self.slots("--ssd-tokens", tokens));
        let ssd = ssd_slots.transpose()?.map(|slots| ClusterSsd {
            slots,
            dir: self.ssd_dir.clone(),
            admission: self.ssd_admission,
        });
        let metadata = match &self.redis {
            _ if self.alone => Metadata::Alone,
            Some(url) => Metadata::Redis(super::redis(url)),
            None => Metadata::Embedded,
        };
        Ok(ClusterSpec {
            nodes: self.nodes,
            slots,
            policy: self.policy,
            ssd,
            metadata,
            deployment: Deployment::synthetic(self.block_tokens, self.block_bytes)?,
            members_interval: MEMBERS_EVERY,
        })
    }
}

impl ReplayArgs {
    /// How many blocks `tokens` tokens are.
    fn slots(&self, flag: &str, tokens: u64) -> Result<u32> {
        let slots = tokens / u64::from(self.block_tokens);
        if slots == 0 {
            return Err(super::usage(format!(
                "{flag} holds no block of --block-tokens"
            )));
        }
        u32::try_from(slots).map_err(|_| super::usage(format!("{flag} is too large")))
    }
}

fn show(report: &ReplayReport, alone: bool) -> String {
    let how = if alone { "alone" } else { "as a cluster" };
    let row = |(what, much): (&str, String)| vec![what.to_owned(), much];
    let mut rows: Vec<Vec<String>> = report.summary.rows().into_iter().map(row).collect();
    let ideal = percent(report.ideal_hit_rate);
    rows.push(row(("hit rate of an ideal cache of that size", ideal)));
    rows.push(row(("dead nodes", report.dead_nodes.to_string())));
    if let (Some(written), Some(read)) = (report.ssd_written_blocks, report.ssd_read_blocks) {
        rows.push(row(("blocks written to SSD", show_count(written))));
        rows.push(row(("blocks read from SSD", show_count(read))));
    }
    if let Some(restart) = &report.restart {
        let attached = format!("{:.1} s", restart.attached_after);
        rows.push(row(("after the restart: engines attached in", attached)));
        let recovered = show_count(restart.recovered_blocks);
        rows.push(row(("blocks found on SSD", recovered)));
        let unanswered = show_count(restart.unanswered_blocks);
        rows.push(row(("blocks asked of nodes that were dead", unanswered)));
        for (second, share) in restart.by_second.iter().enumerate() {
            let (rate, ideal) = share.rates();
            let what = format!("hit rate from second {second} on, and ideal");
            let rates = format!("{}, {}", percent(rate), percent(ideal));
            rows.push(vec![what, rates]);
        }
    }
    rows.push(row(("seconds", format!("{:.1}", report.seconds))));
    let title = format!(
        "{} nodes {how}, {} blocks and {} on SSD of {} each",
        report.nodes,
        show_count(report.node_blocks.into()),
        show_count(report.ssd_blocks.into()),
        show_bytes(report.block_bytes as u64)
    );
    table(&[&title, ""], rows)
}
