//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer and AddressSanitizer, and runs them.
//!
//! Needs no cargo-fuzz and no nightly toolchain. Asks the built program which targets there are;
//! knows only the canary by name, whose planted bug must be found.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, Run, fresh, root, say};
use crate::tools;

/// Fuzzes the decoders of everything that comes from outside.
///
/// Builds all targets into one program (libFuzzer and AddressSanitizer, on the stable compiler) and
/// runs each of them from its seeds and its corpus in fuzz/corpus. Each run begins with the
/// canary, a target with a planted bug: if that is not found, the fuzzer is blind and the command
/// fails. A crash leaves its input in fuzz/artifacts; add it to fuzz/regressions/TARGET, which
/// `cargo test -p flexkv-fuzz` replays without a fuzzer.
///
///   cargo xtask fuzz                       every target for 60 seconds
///
///   cargo xtask fuzz --seconds 600 delta_log
///
///   cargo xtask fuzz --list                the targets
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Only these targets
    targets: Vec<String>,
    /// How long to run each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Build, list the targets and run nothing
    #[arg(long)]
    list: bool,
}

/// The target with the planted bug.
const CANARY: &str = "canary";
/// The message of the planted bug.
const CANARY_SINGS: &str = "the canary sings";
/// How many inputs the canary may take; it needs some thousands.
const CANARY_RUNS: u64 = 20_000_000;
/// Stands before rustc for the crates of the workspace and adds what libFuzzer needs.
const WRAPPER: &str = "fuzz/rustc-instrumented";

/// Fuzzes the targets asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    tools::CXX.ensure()?;
    build().run()?;
    let built = shell::target()?;
    let fuzzer = Fuzzer {
        program: built.join("debug/fuzz").display().to_string(),
        work: built.join("fuzz"),
    };
    let names = select(&fuzzer.program("").args(["--list"]).read()?, &args.targets)?;
    if args.list {
        names.iter().for_each(|name| say(name));
        return Ok(());
    }
    fuzzer.canary()?;
    for name in &names {
        fuzzer.fuzz(name, args.seconds)?;
    }
    say(&format!("{} fuzz targets, no crash", names.len()));
    Ok(())
}

/// A short run of every target, as CI does it.
pub(crate) fn short() -> Result<()> {
    run(&Args {
        targets: Vec::new(),
        seconds: 5,
        list: false,
    })
}

/// In the profile and with the features of every other build of the workspace, so that of the
/// dependencies only libFuzzer is built anew.
fn build() -> Run {
    let wrapper = root().join(WRAPPER);
    Run::cargo("build --workspace --bin fuzz --features flexkv-fuzz/libfuzzer")
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper.to_string_lossy())
}

/// The built program, and where its runs leave what they find.
struct Fuzzer {
    program: String,
    work: PathBuf,
}

/// The names to fuzz, out of the program's list (one a line); the canary never is one.
fn select(list: &str, wanted: &[String]) -> Result<Vec<String>> {
    let all: Vec<_> = list
        .lines()
        .map(str::trim)
        .filter(|n| !n.is_empty() && *n != CANARY)
        .collect();
    for name in wanted {
        if !all.contains(&name.as_str()) {
            bail!(
                "there is no fuzz target `{name}`; the targets are {}",
                all.join(", ")
            );
        }
    }
    let chosen = all
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|w| w == name));
    Ok(chosen.map(str::to_owned).collect())
}

impl Fuzzer {
    fn program(&self, target: &str) -> Run {
        Run::new(&self.program).env("FLEXKV_FUZZ_TARGET", target)
    }

    /// Fails unless the planted bug is found from an empty corpus.
    fn canary(&self) -> Result<()> {
        let corpus = fresh(&self.work.join(CANARY))?.display().to_string();
        let run = self.program(CANARY).args([
            "-seed=1".to_owned(),
            format!("-runs={CANARY_RUNS}"),
            format!("-artifact_prefix={corpus}/"),
            corpus,
        ]);
        say(&format!("$ {run}"));
        let (success, text) = run.capture()?;
        if success || !text.contains(CANARY_SINGS) {
            bail!("the fuzzer is blind: it did not find the bug planted in `{CANARY}`\n{text}");
        }
        say("the planted bug was found");
        Ok(())
    }

    /// New inputs go to `work`, so that a run leaves the checked-in corpus as it is.
    fn fuzz(&self, name: &str, seconds: u64) -> Result<()> {
        let found = fresh(&self.work.join(name).join("found"))?;
        let seeds = fresh(&self.work.join(name).join("seeds"))?;
        let seeds = seeds.display().to_string();
        self.program(name).args(["--seeds", &seeds]).read()?;
        let artifacts = root().join("fuzz/artifacts").join(name);
        std::fs::create_dir_all(&artifacts)
            .with_context(|| format!("cannot make {}", artifacts.display()))?;
        let mut run = self.program(name).args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", artifacts.display()),
            "-timeout=10".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
            "-print_funcs=0".to_owned(),
            found.display().to_string(),
            seeds,
        ]);
        for kind in ["corpus", "regressions"] {
            let dir = root().join("fuzz").join(kind).join(name);
            if dir.is_dir() {
                run = run.args([dir.display().to_string()]);
            }
        }
        run.run().with_context(|| {
            format!(
                "fuzz target `{name}` found a crash; its input is in {}",
                artifacts.display()
            )
        })
    }
}

#[cfg(test)]
mod tests;
