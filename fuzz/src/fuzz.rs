//! The program that libFuzzer drives; `FLEXKV_FUZZ_TARGET` names the target.
//!
//! `fuzz --list` prints the targets, `fuzz --seeds DIR` writes the target's seeds to a directory.
//! Knows no target by name.
#![no_main]

use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use flexkv_fuzz::{TARGETS, Target, find};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(init: start(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});

/// Chooses the target, or does what the arguments say and ends the process.
fn start() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let name = std::env::var("FLEXKV_FUZZ_TARGET").unwrap_or_default();
    let outcome = match (args.first().map(String::as_str), find(&name)) {
        (Some("--list"), _) => list(),
        (_, None) => Err(format!("FLEXKV_FUZZ_TARGET={name} names no fuzz target")),
        (Some("--seeds"), Some(target)) => match args.get(1) {
            Some(dir) => write_seeds(target, Path::new(dir)),
            None => Err("--seeds needs a directory".to_owned()),
        },
        (_, Some(target)) => {
            TARGET.get_or_init(|| *target);
            return;
        }
    };
    let code = match outcome {
        Ok(()) => 0,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            2
        }
    };
    std::process::exit(code);
}

fn list() -> Result<(), String> {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    writeln!(std::io::stdout(), "{}", names.join("\n")).map_err(|error| error.to_string())
}

fn write_seeds(target: &Target, dir: &Path) -> Result<(), String> {
    for (i, seed) in (target.seeds)().iter().enumerate() {
        let file = dir.join(format!("seed-{i:02}"));
        std::fs::write(&file, seed).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}
