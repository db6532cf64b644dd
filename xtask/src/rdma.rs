//! `cargo xtask rdma`: the RDMA transport over a real verbs device, which lives in a virtual machine.
//!
//! Knows what is built, what is booted and what counts as success; what the tests check is theirs.

mod image;
mod machine;
mod packages;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::image::Image;
use self::machine::{Ended, Machine};
use self::packages::Kit;
use crate::shell::{self, Run, say};
use crate::{python, tools};

/// Runs the tests of the RDMA transport in a virtual machine with a software RDMA device.
///
/// Neither RDMA hardware nor virtualisation is needed: qemu emulates a machine, Debian's kernel has
/// the device (soft-RoCE, `rxe`) in it. Kernel, qemu and the tools inside come as Debian packages into
/// the cache directory ($XDG_CACHE_HOME/flexkv or ~/.cache/flexkv, 300 MB), nothing of them is
/// installed; cmake and libclang, which the build needs, are installed if they are missing. A run
/// passes if the machine says so on its console: a test that fails, a kernel that panics and a machine
/// that hangs all fail, and the console is printed.
///
/// It is a step of `cargo xtask ci`, but on machines that are no Debian on x86-64 CI leaves it out and says so.
///
///   cargo xtask rdma                 all tests in one machine: owners and readers share the device
///
///   cargo xtask rdma -- processes    only tests of this name, with arguments for the test runner
///
///   cargo xtask rdma --two           two machines: one reads the other, which is killed in the middle
///
///   cargo xtask rdma --canary        mistakes are planted: a test that must fail, a panic, a hang; the
///                                    command passes if each of them is a failure
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Two machines
    #[arg(long, conflicts_with = "canary")]
    two: bool,
    /// Plant mistakes that must be found
    #[arg(long)]
    canary: bool,
    /// Fetch the packages again
    #[arg(long)]
    fresh: bool,
    /// The longest that a machine may run, in seconds
    #[arg(long, default_value_t = PATIENCE, value_name = "SECONDS")]
    patience: u64,
    /// Arguments for the test runner
    #[arg(last = true, conflicts_with_all = ["two", "canary"])]
    rest: Vec<String>,
}

/// The longest that a machine may run, in seconds.
const PATIENCE: u64 = 300;
/// What a machine does once it is up; words of its command line.
const TEST: &str = "flexkv=test";
/// The test that must fail where a mistake is planted.
const PLANTED: &str = "faults::a_flipped_bit_is_found_wherever_it_is";
/// How long a machine that was told to hang may do so.
const HANGING: Duration = Duration::from_secs(60);

/// As CI runs it: says why not where the machine cannot be had.
pub(crate) fn in_ci() -> Result<Option<String>> {
    if let Some(why) = packages::unavailable() {
        return Ok(Some(why));
    }
    run(&Args {
        two: false,
        canary: false,
        fresh: false,
        patience: PATIENCE,
        rest: Vec::new(),
    })?;
    Ok(None)
}

/// Builds, boots and judges.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (done, took) = shell::timed(|| perform(args));
    done?;
    say(&format!("rdma: passed in {:.0} s", took.as_secs_f64()));
    Ok(())
}

fn perform(args: &Args) -> Result<()> {
    let step = |name: &str, took: Duration| say(&format!("{name:10} {:.1} s", took.as_secs_f64()));
    tools::XZ.ensure()?;
    let cache = python::cache()?.join("rdma");
    let (kit, took) = shell::timed(|| Kit::find_or_fetch(&cache, args.fresh));
    let kit = kit?;
    step("packages", took);
    let (programs, took) = shell::timed(|| build(args.two));
    let programs = programs?;
    step("build", took);
    let work = shell::fresh(&shell::target()?.join("rdma"))?;
    let (image, took) = shell::timed(|| image(&kit, &programs, &args.rest, &work));
    let image = image?;
    step("image", took);
    let patience = Duration::from_secs(args.patience);
    let machine = Machine::new(&kit, &image, &work)?;
    if args.two {
        return two(&machine, patience);
    }
    if args.canary {
        return canary(&machine, patience);
    }
    let (ended, took) = shell::timed(|| machine.run("one", TEST, patience));
    let ended = ended?;
    step("machine", took);
    ended.show_tests();
    match ended.verdict() {
        Ok(passed) => say(&format!("{passed} tests passed over rxe")),
        Err(why) => {
            ended.show();
            bail!("{why}; the console is {}", ended.log.display());
        }
    }
    Ok(())
}

/// Test programs: the crate that has it, its features, what cargo is told, and its name.
const TESTS: [[&str; 4]; 2] = [
    ["flexkv-rdma", "verbs", "test --no-run --test it", "it"],
    ["flexkv", "rdma", "test --no-run --test rdma", "rdma"],
];
/// The same for two machines.
const TWO: [[&str; 4]; 1] = [[
    "flexkv-rdma",
    "verbs",
    "build --example two_hosts",
    "two_hosts",
]];

/// The test programs, or the one for two machines.
fn build(two: bool) -> Result<Vec<PathBuf>> {
    tools::CMAKE.ensure()?;
    tools::libclang()?;
    let wanted: &[[&str; 4]] = if two { &TWO } else { &TESTS };
    wanted.iter().map(build_one).collect()
}

fn build_one([package, features, words, name]: &[&str; 4]) -> Result<PathBuf> {
    let line = format!("{words} -p {package} --features {features} --message-format json");
    let run = Run::cargo(&line);
    say(&format!("$ {run}"));
    let told = run.read()?;
    let mut program = told.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let found = message["target"]["name"].as_str()? == *name;
        let path = message["executable"].as_str()?;
        found.then(|| PathBuf::from(path))
    });
    program
        .next_back()
        .with_context(|| format!("cargo built no program `{name}`"))
}

/// What is in the machine's memory when it starts.
fn image(kit: &Kit, programs: &[PathBuf], rest: &[String], work: &Path) -> Result<PathBuf> {
    let mut image = Image::new();
    image.system(kit)?;
    for (number, program) in programs.iter().enumerate() {
        image.program(kit, program, &format!("bin/program{number}"))?;
    }
    let words: Vec<_> = rest.iter().map(|word| format!("{word}\n")).collect();
    image.file("etc/arguments", 0o644, words.concat().into_bytes());
    image.file("init", 0o755, include_bytes!("../rdma/init.sh").to_vec());
    let path = work.join("image");
    std::fs::write(&path, image.bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Three mistakes, none of which may pass.
fn canary(machine: &Machine<'_>, patience: Duration) -> Result<()> {
    for (name, patience, expected) in [
        ("broken", patience, "tests failed"),
        ("panic", patience, "the machine ended without a result"),
        ("hang", HANGING, "no result within 60 s"),
    ] {
        let ended = machine.run(name, &format!("{TEST} canary={name}"), patience)?;
        let found = match ended.verdict() {
            Ok(passed) => format!("{passed} tests passed"),
            Err(why) => why,
        };
        let failed_alone = name != "broken" || ended.failed_tests() == [PLANTED];
        if !found.contains(expected) || !failed_alone {
            ended.show();
            bail!("the planted mistake `{name}` is not found: {found}");
        }
        say(&format!("{name:10} is found: {found}"));
    }
    Ok(())
}

/// One machine reads the other, which is killed in the middle.
fn two(machine: &Machine<'_>, patience: Duration) -> Result<()> {
    let ended = machine.run_two(patience)?;
    let judged = judge_two(&ended);
    if judged.is_err() {
        ended.iter().for_each(Ended::show);
    }
    judged
}

fn judge_two(ended: &[Ended; 2]) -> Result<()> {
    let [owner, reader] = ended;
    for line in reader.lines("flexkv: ") {
        say(line);
    }
    match reader.verdict() {
        Ok(_) => Ok(()),
        Err(why) => bail!(
            "{why}; the consoles are {} and {}",
            owner.log.display(),
            reader.log.display()
        ),
    }
}
