//! Rules for the manifests of the crates.
//!
//! Knows nothing of what a crate is for.

use toml::{Table, Value};

use super::Finding;

/// Keys of `[package]` that every crate inherits.
const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];

/// Tables of dependencies.
const DEPENDENCIES: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// All rules for the manifest `file` of a crate.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(file, 0, format!("is not TOML: {error}"))],
    };
    let mut problems = package(&manifest);
    problems.extend(dependencies(&manifest));
    problems
        .into_iter()
        .map(|what| Finding::new(file, 0, what))
        .collect()
}

fn package(manifest: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    let package = manifest.get("package");
    for key in INHERITED {
        if !package.and_then(|p| p.get(key)).is_some_and(inherits) {
            problems.push(format!("must say `{key}.workspace = true`"));
        }
    }
    let described = package
        .and_then(|p| p.get("description"))
        .and_then(Value::as_str);
    if described.is_none_or(str::is_empty) {
        problems.push("has no description".to_owned());
    }
    if !manifest.get("lints").is_some_and(inherits) {
        problems.push("must have `[lints] workspace = true`".to_owned());
    }
    problems
}

/// One version per dependency, in one place.
fn dependencies(manifest: &Table) -> Vec<String> {
    let tables = DEPENDENCIES
        .iter()
        .filter_map(|name| manifest.get(*name)?.as_table());
    tables
        .flatten()
        .filter(|(_, value)| !inherits(value))
        .map(|(name, _)| {
            format!("must take `{name}` from the workspace (`{name}.workspace = true`)")
        })
        .collect()
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests;
