//! The arrows between crates: who may depend on whom. A change here is a design change.
//!
//! Knows only what `cargo metadata` says.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Finding;

/// A crate of the workspace and the crates of the workspace it may use.
struct Arrow {
    name: &'static str,
    /// In code that ships.
    uses: &'static [&'static str],
    /// In tests and benches besides.
    tests_use: &'static [&'static str],
}

const fn arrow(
    name: &'static str,
    uses: &'static [&'static str],
    tests_use: &'static [&'static str],
) -> Arrow {
    Arrow {
        name,
        uses,
        tests_use,
    }
}

/// Every crate of the workspace. Adapters are strangers to each other.
const ARROWS: &[Arrow] = &[
    arrow("flexkv-block", &[], &[]),
    arrow("flexkv-index", &["flexkv-block"], &[]),
    arrow("flexkv-ports", &["flexkv-block"], &[]),
    arrow("flexkv-redis", &["flexkv-ports", "flexkv-block"], &[]),
    arrow("flexkv-handshake", &["flexkv-block"], &[]),
    arrow(
        "flexkv-tcp",
        &["flexkv-handshake", "flexkv-ports", "flexkv-block"],
        &[],
    ),
    arrow(
        "flexkv-host",
        &["flexkv-handshake", "flexkv-ports", "flexkv-block"],
        &[],
    ),
    arrow(
        "flexkv-rdma",
        &["flexkv-handshake", "flexkv-ports", "flexkv-block"],
        &["flexkv-host"],
    ),
    arrow("flexkv-ssd", &["flexkv-ports", "flexkv-block"], &[]),
    arrow("flexkv-engine", &["flexkv-ports", "flexkv-block"], &[]),
    arrow(
        "flexkv-node",
        &["flexkv-index", "flexkv-ports", "flexkv-block"],
        &[],
    ),
    arrow(
        "flexkv-sim",
        &[
            "flexkv-node",
            "flexkv-index",
            "flexkv-ports",
            "flexkv-block",
        ],
        &[],
    ),
    arrow(
        "flexkv",
        &[
            "flexkv-node",
            "flexkv-engine",
            "flexkv-redis",
            "flexkv-tcp",
            "flexkv-rdma",
            "flexkv-ssd",
            "flexkv-host",
            "flexkv-handshake",
            "flexkv-index",
            "flexkv-ports",
            "flexkv-block",
        ],
        &[],
    ),
    arrow(
        "flexkv-python",
        &["flexkv", "flexkv-engine", "flexkv-ports", "flexkv-block"],
        &[],
    ),
    arrow(
        "flexkv-benches",
        &[
            "flexkv-tcp",
            "flexkv-host",
            "flexkv-handshake",
            "flexkv-index",
            "flexkv-ports",
            "flexkv-block",
        ],
        &[],
    ),
    arrow(
        "flexkv-fuzz",
        &[
            "flexkv",
            "flexkv-engine",
            "flexkv-handshake",
            "flexkv-redis",
            "flexkv-ssd",
            "flexkv-tcp",
            "flexkv-handshake",
            "flexkv-index",
            "flexkv-ports",
            "flexkv-block",
        ],
        &[],
    ),
    arrow("xtask", &[], &[]),
];

/// Crates that do no I/O: time, randomness and messages come in as arguments.
const NO_IO: &[&str] = &["flexkv-block", "flexkv-index"];

/// Crates with which one does I/O.
const IO: &[&str] = &[
    "tokio",
    "async-std",
    "mio",
    "socket2",
    "rustix",
    "libc",
    "nix",
    "fred",
    "redis",
];

/// Crates with terms that not everyone can accept, and why: behind features that are off.
const NOT_BY_DEFAULT: &[(&str, &str)] = &[
    ("rio", "GPL-3.0, docs/decisions/0013-ssd-engines.md"),
    (
        "rdma-mummy-sys",
        "its licence is unclear, docs/decisions/0011-rdma-sideway-and-its-licence.md",
    ),
];

/// Checks the output of `cargo tree` without features: one crate a line.
pub(super) fn check_default(tree: &str) -> Vec<Finding> {
    let built: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let refused = NOT_BY_DEFAULT
        .iter()
        .filter(|(name, _)| built.contains(name));
    refused
        .map(|(name, why)| {
            let what = format!("the default build contains {name}: {why}");
            Finding::new("Cargo.toml", 0, what)
        })
        .collect()
}

/// Checks the output of `cargo metadata`.
pub(super) fn check(metadata: &str) -> Result<Vec<Finding>> {
    let metadata: Value =
        serde_json::from_str(metadata).context("`cargo metadata` wrote what is not JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("`cargo metadata` lists no packages")?;
    let table: BTreeMap<_, _> = ARROWS.iter().map(|arrow| (arrow.name, arrow)).collect();
    Ok(packages
        .iter()
        .flat_map(|package| check_package(package, &table))
        .collect())
}

fn check_package(package: &Value, table: &BTreeMap<&str, &Arrow>) -> Vec<Finding> {
    let name = package["name"].as_str().unwrap_or_default();
    let file = manifest(package);
    let Some(arrow) = table.get(name) else {
        let what = format!("crate {name} is not in the table of arrows (xtask/src/tidy/arrows.rs)");
        return vec![Finding::new(&file, 0, what)];
    };
    let dependencies = package["dependencies"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    dependencies
        .iter()
        .filter_map(|dependency| refuse(arrow, dependency, table))
        .map(|what| Finding::new(&file, 0, what))
        .collect()
}

/// What is wrong with `dependency` of the crate of `arrow`, if anything is.
fn refuse(arrow: &Arrow, dependency: &Value, table: &BTreeMap<&str, &Arrow>) -> Option<String> {
    let name = arrow.name;
    let used = dependency["name"].as_str().unwrap_or_default();
    let in_tests = dependency["kind"] == "dev";
    if !table.contains_key(used) {
        let refused = !in_tests && NO_IO.contains(&name) && IO.contains(&used);
        return refused.then(|| format!("{name} does no I/O and must not use {used}"));
    }
    if arrow.uses.contains(&used) || (in_tests && arrow.tests_use.contains(&used)) {
        return None;
    }
    let place = if in_tests { " in tests" } else { "" };
    Some(format!(
        "{name} must not use {used}{place}: the design has no such arrow (it has {})",
        if arrow.uses.is_empty() {
            "none".to_owned()
        } else {
            arrow.uses.join(", ")
        },
    ))
}

/// The manifest's path relative to the workspace, as far as it can be told.
fn manifest(package: &Value) -> String {
    let path = package["manifest_path"].as_str().unwrap_or_default();
    let root = crate::shell::root().to_string_lossy();
    let path = path.strip_prefix(root.as_ref()).unwrap_or(path);
    path.trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests;
