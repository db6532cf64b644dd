//! Arrows of the design pass; others, unknown crates and I/O in pure crates are refused.

use super::*;

fn found(name: &str, dependencies: &[(&str, &str)]) -> Vec<String> {
    let dependencies: Vec<_> = dependencies
        .iter()
        .map(|(name, kind)| {
            let kind = if kind.is_empty() {
                Value::Null
            } else {
                (*kind).into()
            };
            serde_json::json!({ "name": name, "kind": kind })
        })
        .collect();
    let metadata = serde_json::json!({ "packages": [
        { "name": name, "manifest_path": "x/Cargo.toml", "dependencies": dependencies }
    ]});
    let findings = check(&metadata.to_string()).expect("metadata");
    findings.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn arrows_of_the_design_pass() {
    assert_eq!(
        found("flexkv-index", &[("flexkv-block", ""), ("bytes", "")]),
        [""; 0]
    );
    assert_eq!(
        found(
            "flexkv-node",
            &[("flexkv-index", ""), ("flexkv-ports", "dev")]
        ),
        [""; 0]
    );
}

#[test]
fn what_is_behind_a_feature_is_not_in_the_default_build() {
    let found = |tree| {
        let findings = check_default(tree).into_iter();
        findings.map(|it| it.what).collect::<Vec<_>>()
    };
    let good = "flexkv v0.1.0 (/x)\nrio-like v1.0.0\nlibc v0.2.0 (*)\n\n";
    assert_eq!(found(good), [""; 0]);
    let bad = found("flexkv v0.1.0 (/x)\nrio v0.9.4\nrio v0.9.4 (*)\n");
    assert_eq!(bad.len(), 1);
    assert!(bad[0].contains("GPL-3.0"), "{bad:?}");
}

#[test]
fn adapters_are_strangers_to_each_other() {
    assert_eq!(
        found("flexkv-tcp", &[("flexkv-redis", "")]),
        [
            "flexkv-tcp must not use flexkv-redis: the design has no such arrow (it has flexkv-handshake, flexkv-ports, flexkv-block)"
        ]
    );
    assert_eq!(
        found("flexkv-block", &[("flexkv-ports", "dev")]),
        [
            "flexkv-block must not use flexkv-ports in tests: the design has no such arrow (it has none)"
        ]
    );
    assert_eq!(found("flexkv", &[("flexkv-sim", "build")]).len(), 1);
}

#[test]
fn a_new_crate_must_be_entered() {
    assert!(found("flexkv-new", &[])[0].contains("not in the table of arrows"));
}

#[test]
fn pure_crates_use_no_io() {
    assert_eq!(
        found("flexkv-index", &[("tokio", "")]),
        ["flexkv-index does no I/O and must not use tokio"]
    );
    assert_eq!(found("flexkv-index", &[("tokio", "dev")]), [""; 0]);
    assert_eq!(found("flexkv-node", &[("tokio", "")]), [""; 0]);
}

#[test]
fn the_table_has_no_cycle_and_no_stranger() {
    for (i, arrow) in ARROWS.iter().enumerate() {
        for used in arrow.uses {
            let at = ARROWS
                .iter()
                .position(|other| other.name == *used)
                .expect("listed");
            assert!(
                at < i,
                "{} is listed before {used}, which it uses",
                arrow.name
            );
        }
    }
}
