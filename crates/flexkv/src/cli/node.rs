//! `flexkv node`: its arguments. What a node process does is known to `serve`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::{EXAMPLE, NodeFile};
use crate::serve::{ServeOptions, serve};

/// Run a cache node: engines of this host attach to it, peers fetch from it.
///
/// Prints one line when it serves, then one whenever the number of its live peers changes. Ends at
/// Ctrl-C or SIGTERM, after telling the cluster; kill -9 costs peers only the blocks it had.
///
///   flexkv node --example-config > node.toml   # every setting, explained
///   flexkv node --config node.toml --check     # is it valid?
///   flexkv node --config node.toml
///
/// The password of Redis can be given as FLEXKV_REDIS_PASSWORD. Redis may be away when the node
/// starts, and at any time later; one that refuses the password ends the start.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct NodeArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", required_unless_present = "example_config")]
    config: Option<PathBuf>,
    /// Only read the configuration and say what is wrong with it
    #[arg(long, requires = "config")]
    check: bool,
    /// Print a configuration with every setting explained
    #[arg(long, conflicts_with_all = ["config", "check"])]
    example_config: bool,
    /// Print events as JSON, one object a line
    #[arg(long)]
    json: bool,
    /// End when standard input closes: a parent process that dies takes the node with it
    #[arg(long)]
    until_stdin_closes: bool,
}

pub(super) async fn run(args: NodeArgs, out: &mut dyn Write) -> Result<()> {
    let Some(path) = args.config else {
        return super::print(out, EXAMPLE.trim_end());
    };
    let file = NodeFile::read(&path, super::password())?;
    if args.check {
        return super::print(out, &format!("{} is valid", path.display()));
    }
    let options = ServeOptions {
        json: args.json,
        until_stdin_closes: args.until_stdin_closes,
    };
    serve(file, options, out).await
}
