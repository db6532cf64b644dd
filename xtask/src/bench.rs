//! `cargo xtask bench` and `cargo xtask demo`: the optimised builds and their numbers.
//!
//! Knows nothing of what is measured.

mod transport;

use anyhow::Result;

use crate::shell::Run;

/// Measures the hot paths, then the index as a whole.
///
/// First the criterion benches of `benches/` with their naive baselines, then `flexkv bench index`.
/// Numbers mean something only on an idle machine; write command, commit and hardware beside them.
///
///   cargo xtask bench                      everything
///
///   cargo xtask bench --criterion          criterion alone
///
///   cargo xtask bench -- match_prefix      only benches whose name has `match_prefix`
///
///   cargo xtask bench ssd --with-fio       the SSD tier beside fio
///
///   cargo xtask bench transport            TCP and shared memory, see there
#[derive(clap::Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    which: Option<Which>,
    /// Only the criterion benches
    #[arg(long)]
    criterion: bool,
    /// Arguments for criterion: a filter, `--save-baseline NAME`, `--quick`; implies --criterion
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Benches of one part.
#[derive(clap::Subcommand)]
enum Which {
    Transport(transport::Args),
    /// The SSD tier, on files in the folder of builds unless --dir says otherwise
    Ssd {
        /// Arguments for `flexkv bench ssd`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Shows the cache at work: several nodes in one process, an embedded store, real blocks.
///
///   cargo xtask demo                       with the defaults
///
///   cargo xtask demo -- --help             what can be set
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DemoArgs {
    /// Arguments for `flexkv demo`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the benches.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.which {
        Some(Which::Ssd { rest }) => return ssd(rest).run(),
        Some(Which::Transport(args)) => return transport::run(args),
        None => {}
    }
    let mut criterion = Run::cargo("bench --package flexkv-benches --bench hot_paths");
    if !args.rest.is_empty() {
        criterion = criterion.args(["--"]).args(&args.rest);
    }
    criterion.run()?;
    if args.criterion || !args.rest.is_empty() {
        return Ok(());
    }
    flexkv(&["bench".to_owned(), "index".to_owned()]).run()
}

/// The bench of the SSD tier, on the device that builds are on.
fn ssd(rest: &[String]) -> Run {
    let mut words = vec!["bench".to_owned(), "ssd".to_owned()];
    if !rest.iter().any(|word| word.starts_with("--dir")) {
        words.extend(["--dir".to_owned(), "target".to_owned()]);
    }
    words.extend_from_slice(rest);
    flexkv(&words)
}

/// Runs the demo.
pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    let mut words = vec!["demo".to_owned()];
    words.extend_from_slice(&args.rest);
    flexkv(&words).run()
}

/// Every bench once, unmeasured, in the profile of the tests: it still compiles and runs.
/// `--workspace` keeps the features of shared dependencies as they are for the tests.
pub(crate) fn smoke() -> Run {
    Run::cargo("test --workspace --bench hot_paths")
}

fn flexkv(words: &[String]) -> Run {
    Run::cargo("run --release --package flexkv --bin flexkv --").args(words)
}
