//! `flexkv bench serve`: its arguments. How requests are sent is known to `bench::serve`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

use crate::bench::serve::{BenchSpec, Routing, Shape, Workload, run as send};
use crate::http::BaseUrl;
use crate::trace;
use crate::units::parse_duration;

/// Send completions to serving instances: how long do answers take, where does their KV come from?
///
/// Instances are servers of the OpenAI API on consecutive ports, as `flexkv serve` starts them.
/// Prompts are token ids, made from --seed. Hits are what the instances' /metrics counted
/// meanwhile, so let nobody else use them.
///
///   flexkv bench serve --base-url http://127.0.0.1:30001 --instances 2
///   flexkv bench serve --instances 2 --workload prefix --prefix-tokens 3000 --rate 4
///   flexkv bench serve --instances 2 --workload trace --trace trace.jsonl --json
///
/// Time to first token is from sending a request to the first token of its answer. The exit code is
/// 1 if a request failed.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct ServeArgs {
    /// The first instance
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:30001")]
    base_url: BaseUrl,
    /// Instances, on consecutive ports
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    instances: usize,
    /// The model's name; the one that the instances serve if not given
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Requests in all; of a trace, the first ones (all if not given)
    #[arg(long, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    requests: Option<usize>,
    /// Requests in flight at most
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    concurrency: usize,
    /// Requests a second, in random distances; as fast as they are answered if not given
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: Option<f64>,
    /// What is asked
    #[arg(long, value_enum, default_value = "chat")]
    workload: WorkloadKind,
    /// The trace to send, in the form of the Mooncake traces (see flexkv replay --help)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Which instance gets a request
    #[arg(long, value_enum, default_value = "round-robin")]
    routing: RoutingKind,
    /// The same seed makes the same prompts
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Beginnings that prompts share
    #[arg(long, value_name = "N", default_value_t = 4)]
    prefixes: usize,
    /// Tokens of such a beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    prefix_tokens: usize,
    /// Most turns of a chat
    #[arg(long, value_name = "N", default_value_t = 6)]
    turns: usize,
    /// Most tokens of a question; the fewest are half of it
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    question_tokens: usize,
    /// Tokens of an answer; of a trace, the most
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    answer_tokens: usize,
    /// Token ids of prompts are below this; no more than the model's vocabulary
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(32..))]
    vocabulary: u32,
    /// Longest wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = parse_duration)]
    answer_deadline: Duration,
    /// Print an array of rows as JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WorkloadKind {
    /// Conversations of several turns over shared beginnings
    Chat,
    /// Single questions with shared beginnings
    Prefix,
    /// The prompts of --trace
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoutingKind {
    /// One after the other
    RoundRobin,
    /// Any
    Random,
    /// A chat, or prompts with the same beginning, stay at one
    Hash,
}

/// Requests in all, unless said otherwise.
const REQUESTS: usize = 64;

pub(super) async fn run(args: ServeArgs, out: &mut dyn Write) -> Result<()> {
    let workload = args.workload()?;
    let report = send(&args.spec(), workload).await?;
    if args.json {
        super::super::print_json(out, &report.rows())?;
    } else {
        super::super::print(out, &report.show())?;
    }
    match report.failed() {
        0 => Ok(()),
        failed => bail!(
            "{failed} of {} requests failed:\n{}",
            report.requests(),
            report.failures()
        ),
    }
}

impl ServeArgs {
    fn workload(&self) -> Result<Workload> {
        let requests = self.requests.unwrap_or(REQUESTS);
        let shape = Shape {
            requests,
            prefixes: self.prefixes,
            prefix_tokens: self.prefix_tokens,
            max_turns: self.turns,
            question_tokens: self.question_tokens,
            answer_tokens: self.answer_tokens,
            vocabulary: self.vocabulary,
        };
        match (self.workload, &self.trace) {
            (WorkloadKind::Trace, Some(path)) => {
                let requests = trace::read(path, self.requests)?;
                Ok(Workload::trace(
                    &requests,
                    self.answer_tokens,
                    self.vocabulary,
                ))
            }
            (WorkloadKind::Trace, None) => {
                Err(super::super::usage("--workload trace needs --trace FILE"))
            }
            (_, Some(_)) => Err(super::super::usage("--trace is for --workload trace")),
            (WorkloadKind::Chat, None) => Ok(Workload::chats(&shape, self.seed)),
            (WorkloadKind::Prefix, None) => Ok(Workload::prefixes(&shape, self.seed)),
        }
    }

    fn spec(&self) -> BenchSpec {
        BenchSpec {
            base: self.base_url.clone(),
            instances: self.instances,
            model: self.model.clone(),
            concurrency: self.concurrency,
            rate: self.rate,
            routing: match self.routing {
                RoutingKind::RoundRobin => Routing::RoundRobin,
                RoutingKind::Random => Routing::Random,
                RoutingKind::Hash => Routing::Hash,
            },
            seed: self.seed,
            answered_within: self.answer_deadline,
        }
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(format!("`{text}` is not a rate: write a number above 0")),
    }
}
