//! `cargo xtask ci`: all that CI runs, in order, and nothing besides.
//!
//! Knows the order of the steps; what a step does is its own module's.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::shell::{self, Run, say};
use crate::{bench, fuzz, it, python, rdma, sim, tidy, tools, vllm};

/// Runs all that CI runs, in order, and stops at the first failure.
///
/// Every step is announced with its command and timed; a table closes the run, and its last line
/// counts the steps. `.ci/run` and the GitHub workflow call this command and nothing else.
///
///   cargo xtask ci                 all steps
///
///   cargo xtask ci fmt clippy      only these, in CI's order
///
///   cargo xtask ci --list          the steps and their commands
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Run only these steps
    steps: Vec<String>,
    /// List the steps and their commands, run nothing
    #[arg(long)]
    list: bool,
}

/// What a step does.
enum Work {
    /// Starts a program.
    Command(Run),
    /// Calls a function; the text says what to type for it alone.
    Call(&'static str, fn() -> Result<()>),
    /// The same, if the machine is one on which it can be done: else the function says why not.
    Where(&'static str, fn() -> Result<Option<String>>),
}

struct Step {
    name: &'static str,
    work: Work,
}

/// One profile serves clippy to `smoke`, and `--workspace` everywhere keeps the features of shared
/// dependencies equal, so that they are built once; `fuzz` builds only our own crates anew, and
/// `sim` is the one optimised build.
/// The three test steps share no test: libraries and binaries, doc tests, integration suites.
fn steps() -> Vec<Step> {
    let cargo = |name, line| Step {
        name,
        work: Work::Command(Run::cargo(line)),
    };
    let command = |name, run| Step {
        name,
        work: Work::Command(run),
    };
    let call = |name, text, function| Step {
        name,
        work: Work::Call(text, function),
    };
    vec![
        cargo("fmt", "fmt --all --check"),
        call("tidy", "cargo xtask tidy", tidy::check),
        call(
            "tools",
            "find or install redis-server, g++ and Python",
            tools,
        ),
        cargo(
            "clippy",
            "clippy --workspace --all-targets --features flexkv-fuzz/libfuzzer -- -D warnings",
        ),
        cargo("build", "build --workspace --all-targets"),
        cargo("test", "test --workspace --lib --bins --no-fail-fast"),
        cargo("doc-test", "test --workspace --doc"),
        command(
            "doc",
            Run::cargo("doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings"),
        ),
        command("it", it::all()),
        Step {
            name: "rdma",
            work: Work::Where("cargo xtask rdma", rdma::in_ci),
        },
        call("python", "cargo xtask python", python::short),
        call("vllm", "cargo xtask vllm --short", vllm::short),
        command("smoke", bench::smoke()),
        command("sim", sim::short()),
        call("fuzz", "cargo xtask fuzz --seconds 5", fuzz::short),
    ]
}

fn tools() -> Result<()> {
    tools::REDIS.ensure()?;
    tools::FAKETIME.ensure()?;
    tools::IPROUTE.ensure()?;
    tools::CXX.ensure()?;
    tools::python()
}

/// Runs the steps asked for; the failure of a step is told in the summary, not as an error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let steps = select(steps(), &args.steps)?;
    if args.list {
        steps
            .iter()
            .for_each(|step| say(&format!("{:10} {}", step.name, step.describe())));
        return Ok(ExitCode::SUCCESS);
    }
    let report = perform(&steps);
    report.lines(&steps).iter().for_each(|line| say(line));
    Ok(match report.failure {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

fn select(all: Vec<Step>, wanted: &[String]) -> Result<Vec<Step>> {
    let names: Vec<_> = all.iter().map(|step| step.name).collect();
    for name in wanted {
        if !names.contains(&name.as_str()) {
            bail!(
                "there is no step `{name}`; the steps are {}",
                names.join(", ")
            );
        }
    }
    Ok(all
        .into_iter()
        .filter(|step| wanted.is_empty() || wanted.iter().any(|name| name == step.name))
        .collect())
}

/// How the run went: the duration of every step that ran, and why the last of them failed.
struct Report {
    took: Vec<Duration>,
    /// Which of them could not be done here, and why.
    left_out: BTreeMap<usize, String>,
    failure: Option<String>,
}

fn perform(steps: &[Step]) -> Report {
    let mut report = Report {
        took: Vec::new(),
        left_out: BTreeMap::new(),
        failure: None,
    };
    for (i, step) in steps.iter().enumerate() {
        say(&format!("\n==> [{}/{}] {}", i + 1, steps.len(), step.name));
        let (result, took) = shell::timed(|| step.run());
        report.took.push(took);
        match result {
            Ok(None) => say(&format!("<== {} passed in {}", step.name, seconds(took))),
            Ok(Some(why)) => {
                say(&format!("<== {} LEFT OUT: {why}", step.name));
                report.left_out.insert(i, why);
            }
            Err(error) => {
                report.failure = Some(format!("{error:#}"));
                break;
            }
        }
    }
    report
}

impl Step {
    fn describe(&self) -> String {
        match &self.work {
            Work::Command(run) => run.to_string(),
            Work::Call(text, _) | Work::Where(text, _) => (*text).to_owned(),
        }
    }

    /// Does it, or says why that cannot be done here.
    fn run(&self) -> Result<Option<String>> {
        match &self.work {
            Work::Command(run) => run.run().map(|()| None),
            Work::Call(text, function) => {
                say(&format!("$ {text}"));
                function().map(|()| None)
            }
            Work::Where(text, function) => {
                say(&format!("$ {text}"));
                function()
            }
        }
    }
}

impl Report {
    /// The summary: a row per step, why it stopped, and the count alone in the last line.
    fn lines(&self, steps: &[Step]) -> Vec<String> {
        let failed = usize::from(self.failure.is_some());
        let done = self.took.len() - failed;
        let mut lines = vec![String::new()];
        for (i, step) in steps.iter().enumerate() {
            let (outcome, took) = match self.took.get(i) {
                Some(took) if self.left_out.contains_key(&i) => ("LEFT OUT", seconds(*took)),
                Some(took) if i < done => ("passed", seconds(*took)),
                Some(took) => ("FAILED", seconds(*took)),
                None => ("not run", String::new()),
            };
            lines.push(format!("{:10} {outcome:8} {took:>9}", step.name));
        }
        let total = self.took.iter().sum();
        lines.push(format!("{:10} {:8} {:>9}", "all", "", seconds(total)));
        for (i, why) in &self.left_out {
            lines.push(format!("\nstep `{}` was left out: {why}", steps[*i].name));
        }
        if let (Some(failure), Some(step)) = (&self.failure, steps.get(done)) {
            lines.push(format!(
                "\nstep `{}` failed: {failure}\nrun it alone by: cargo xtask ci {}\n",
                step.name, step.name
            ));
        }
        let left_out = match self.left_out.len() {
            0 => String::new(),
            count => format!("{count} left out, "),
        };
        let passed = done - self.left_out.len();
        lines.push(format!("{passed} passed, {left_out}{failed} failed"));
        lines
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests;
