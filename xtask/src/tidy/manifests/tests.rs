//! Inherited values pass, own ones are refused by name.

use super::*;

const GOOD: &str = "
[package]
name = \"a\"
description = \"A crate\"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true
[lints]
workspace = true
[dependencies]
bytes.workspace = true
tokio = { workspace = true, features = [\"rt\"] }
";

fn found(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from}");
    let findings = check("a/Cargo.toml", &GOOD.replace(from, to));
    findings.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn inheriting_passes() {
    assert_eq!(found("", ""), [""; 0]);
}

#[test]
fn own_values_are_refused() {
    assert_eq!(
        found("edition.workspace = true", "edition = \"2021\""),
        ["must say `edition.workspace = true`"]
    );
    assert_eq!(
        found("version.workspace = true\nedition", "edition"),
        ["must say `version.workspace = true`"]
    );
    assert_eq!(
        found("[lints]\nworkspace = true", ""),
        ["must have `[lints] workspace = true`"]
    );
    assert_eq!(
        found("description = \"A crate\"", ""),
        ["has no description"]
    );
}

#[test]
fn versions_are_written_in_one_place() {
    assert_eq!(
        found("bytes.workspace = true", "bytes = \"1\""),
        ["must take `bytes` from the workspace (`bytes.workspace = true`)"]
    );
    assert_eq!(
        found(
            "{ workspace = true, features",
            "{ version = \"1\", features"
        ),
        ["must take `tokio` from the workspace (`tokio.workspace = true`)"]
    );
}

#[test]
fn nonsense_is_named() {
    assert!(found("[package]", "[package")[0].starts_with("is not TOML"));
}
