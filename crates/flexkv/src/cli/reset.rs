//! `flexkv reset`: its arguments and what it prints. How it is done is known to `reset`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flexkv_index::NodeName;
use flexkv_redis::RedisStore;

use crate::config::NodeFile;
use crate::reset::{ResetReport, reset};
use crate::units::parse_duration;

/// Drop all cached blocks of a namespace, on all its nodes, or of one node.
///
/// Which cluster, namespace and Redis is read from the configuration of any of its nodes. Safe while
/// engines use the cache: they miss, and never get wrong bytes. Blocks that are being read just then
/// are no longer found and freed afterwards. Until all nodes have dropped theirs, none fetches from
/// another, so nothing old comes back. A node that is cut off from Redis is not reached: it is named,
/// and keeps its blocks.
///
///   flexkv reset --config node.toml                  # the whole namespace
///   flexkv reset --config node.toml --node gpu-7     # one node
///
/// Ends with 1 if a node did not answer in time.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct ResetArgs {
    /// The configuration of a node of the namespace
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only the node of this name
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How long to wait for the nodes
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    within: Duration,
    /// Print what happened as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ResetArgs, out: &mut dyn Write) -> Result<()> {
    let file = NodeFile::read(&args.config, super::password())?;
    let Some(redis) = &file.redis else {
        bail!("the node is alone (no `redis.url`): restart it, which drops all its blocks");
    };
    let config = redis.config(&file.cluster, file.namespace.id)?;
    let address = config.address().to_owned();
    let store = RedisStore::connect(config)
        .await
        .with_context(|| format!("cannot use Redis at {address}"))?;
    let report = reset(&store, args.node.clone(), args.within).await?;
    if args.json {
        super::print_json(out, &report)?;
    } else {
        super::print(out, &show(&report))?;
    }
    if let Some(name) = &args.node
        && report.done.is_empty()
    {
        bail!("no node called `{name}` has dropped its blocks");
    }
    if !report.silent.is_empty() {
        bail!(
            "{} did not answer within {:?}",
            report.silent.join(", "),
            args.within
        );
    }
    Ok(())
}

fn show(report: &ResetReport) -> String {
    let ResetReport { done, silent, gone } = report;
    let lines = [
        ("dropped all blocks", done),
        ("did not answer", silent),
        ("left meanwhile", gone),
    ];
    let shown = lines.iter().filter(|(_, nodes)| !nodes.is_empty());
    let shown: Vec<_> = shown
        .map(|(what, nodes)| format!("{what}: {}", nodes.join(", ")))
        .collect();
    match shown.is_empty() {
        true => "no node is there".to_owned(),
        false => shown.join("\n"),
    }
}
