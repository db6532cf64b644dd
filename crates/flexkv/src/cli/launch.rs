//! `flexkv serve`: its arguments. How instances are started and ended is known to `launch`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::launch::{LaunchSpec, RedisChoice, launch};
use crate::units::parse_duration;

/// Start vLLM instances that reuse each other's KV cache, on consecutive ports.
///
/// Instances of this host share one node, which keeps blocks in the host's memory. With Redis, nodes
/// of all hosts share theirs. Prints `ready:` and the instances' addresses once all are healthy;
/// their logs go to standard error. Ends everything at Ctrl-C or SIGTERM, or when one instance ends.
///
///   flexkv serve 2 30001 --model ./Qwen3-8B
///   flexkv serve 2 30001 --model ./Qwen3-8B -- --max-model-len 8192
///   flexkv serve 2 30001 --model ./Qwen3-8B --redis redis://:password@10.6.131.12:6379
///   flexkv serve 2 30001 --model ./Qwen3-8B --node-per-instance   # as if on two hosts
///
/// What follows -- goes to vLLM. FLEXKV_* variables go to the connector; FLEXKV_REDIS_PASSWORD
/// keeps the password off the command line. Exit codes: 0 ended by a signal while serving, 130
/// before all instances were healthy, 1 something went wrong.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct ServeArgs {
    /// Instances to start
    #[arg(value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    instances: usize,
    /// Port of the first instance; the others follow
    #[arg(value_name = "BASE_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// The model: a folder, or a name that vLLM knows
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Where instances listen; 0.0.0.0 for all addresses of this host
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Let nodes find each other, also those of other hosts, through this Redis
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Start a Redis for this run alone
    #[arg(long, conflicts_with = "redis")]
    start_redis: bool,
    /// Every instance has a node of its own, so that blocks move between them over the network;
    /// starts a Redis if none is named
    #[arg(long)]
    node_per_instance: bool,
    /// Memory of a node in GiB; a quarter of what is free, at most 16, if not given
    #[arg(long, value_name = "G", value_parser = parse_size)]
    cpu_cache_gb: Option<f64>,
    /// GPUs of an instance: the first one gets the first so many, and so on
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    gpus_per_instance: Option<usize>,
    /// vLLM's program
    #[arg(long, value_name = "PROGRAM", default_value = "vllm")]
    vllm: PathBuf,
    /// Start instances without the connector: what they do alone
    #[arg(long, conflicts_with_all = ["redis", "start_redis", "node_per_instance", "cpu_cache_gb"])]
    no_connector: bool,
    /// How long instances may take to become healthy
    #[arg(long, value_name = "TIME", default_value = "30min", value_parser = parse_duration)]
    start_deadline: Duration,
    /// How long instances may take to end before they are killed
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    stop_deadline: Duration,
    /// Further arguments of vLLM
    #[arg(last = true, value_name = "VLLM_ARGS")]
    arguments: Vec<String>,
}

pub(super) async fn run(args: ServeArgs, out: &mut dyn Write) -> Result<()> {
    let redis = match args.redis {
        Some(url) => RedisChoice::Url(url),
        None if args.start_redis => RedisChoice::Start,
        None => RedisChoice::AsIs,
    };
    let spec = LaunchSpec {
        instances: args.instances,
        base_port: args.base_port,
        host: args.host,
        model: args.model,
        vllm: args.vllm,
        arguments: args.arguments,
        connector: !args.no_connector,
        node_per_instance: args.node_per_instance,
        cpu_cache_gb: args.cpu_cache_gb,
        gpus_per_instance: args.gpus_per_instance,
        redis,
        start_within: args.start_deadline,
        stop_within: args.stop_deadline,
    };
    launch(&spec, out).await
}

fn parse_size(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(size) if size.is_finite() && size > 0.0 => Ok(size),
        _ => Err(format!(
            "`{text}` is not a size in GiB: write a number above 0"
        )),
    }
}
