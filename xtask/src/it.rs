//! `cargo xtask it`: the integration suites, which start real processes.
//!
//! Knows nothing of what the suites check; each crate's lie in its `tests/it`.

use anyhow::Result;

use crate::shell::Run;
use crate::tools::{FAKETIME, IPROUTE, REDIS};

/// Runs the integration suites: several processes, a real Redis.
///
/// Every crate's suite is its test target `it` (`crates/*/tests/it`). The suites start and stop
/// their own `redis-server` on free ports, give nodes other clocks by `faketime`, and networks of their
/// own by `ip` and `tc`; programs that are missing are installed with apt where that is allowed. A
/// machine that allows no network namespaces fails the tests of partitions, which say so.
///
///   cargo xtask it                        all suites
///
///   cargo xtask it -p flexkv              the suite of one crate
///
///   cargo xtask it -- --nocapture killed  with arguments for the test runner
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Only the suite of this crate; may be given several times
    #[arg(short, long = "package", value_name = "CRATE")]
    packages: Vec<String>,
    /// Arguments for the test runner
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Finds or installs Redis, then runs the suites.
pub(crate) fn run(args: &Args) -> Result<()> {
    REDIS.ensure()?;
    FAKETIME.ensure()?;
    IPROUTE.ensure()?;
    command(args).run()
}

/// The suites of all crates, as CI runs them.
pub(crate) fn all() -> Run {
    command(&Args {
        packages: Vec::new(),
        rest: Vec::new(),
    })
}

fn command(args: &Args) -> Run {
    let mut run = Run::cargo("test");
    if args.packages.is_empty() {
        run = run.args(["--workspace"]);
    }
    for package in &args.packages {
        run = run.args(["--package", package]);
    }
    run = run.args(["--test", "*"]);
    if !args.rest.is_empty() {
        run = run.args(["--"]).args(&args.rest);
    }
    run
}

#[cfg(test)]
mod tests;
