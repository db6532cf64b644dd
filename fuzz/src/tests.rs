//! Replays seeds, corpus and regressions, and checks that the list of targets is in order.

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::*;
use crate::targets::canary;

fn dir(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(name)
}

/// The files of a directory, none if it does not exist.
fn inputs(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = dir.read_dir() else {
        return Vec::new();
    };
    entries
        .map(|entry| {
            let path = entry.expect("listed").path();
            (
                path.display().to_string(),
                std::fs::read(&path).expect("read"),
            )
        })
        .collect()
}

#[test]
fn seeds_corpus_and_regressions_hold() {
    for target in TARGETS {
        let seeds = (target.seeds)().into_iter().enumerate();
        let mut all: Vec<_> = seeds.map(|(i, seed)| (format!("seed {i}"), seed)).collect();
        assert!(!all.is_empty(), "{} has no seeds", target.name);
        all.extend(inputs(&dir("corpus", target.name)));
        all.extend(inputs(&dir("regressions", target.name)));
        for (name, input) in all {
            let held = catch_unwind(|| (target.run)(&input)).is_ok();
            assert!(held, "{} does not hold for {name}", target.name);
        }
    }
}

#[test]
fn every_input_belongs_to_a_target() {
    for kind in ["corpus", "regressions"] {
        let Ok(entries) = dir(kind, "").read_dir() else {
            continue;
        };
        for entry in entries {
            let name = entry.expect("listed").file_name();
            let name = name.to_string_lossy();
            assert!(find(&name).is_some(), "{kind}/{name} has no target");
        }
    }
}

#[test]
fn names_are_unique() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len());
    assert!(find("no such target").is_none());
}

#[test]
fn the_planted_bug_is_there() {
    let canary = find("canary").expect("listed");
    let panic = catch_unwind(|| (canary.run)(canary::BUG)).expect_err("panics");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains(canary::SONG), "{message}");
}
