//! Targets are chosen by name, and never the canary.

use super::*;

fn check(wanted: &[&str], expect: Result<&[&str], &str>) {
    let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let chosen = select("canary\nblock_frame\ntcp_wire\n", &wanted).map_err(|e| e.to_string());
    let expect = expect.map(|names| names.iter().map(|n| (*n).to_owned()).collect());
    assert_eq!(chosen, expect.map_err(str::to_owned));
}

#[test]
fn targets_are_chosen_by_name() {
    check(&[], Ok(&["block_frame", "tcp_wire"]));
    check(&["tcp_wire"], Ok(&["tcp_wire"]));
    check(
        &["canary"],
        Err("there is no fuzz target `canary`; the targets are block_frame, tcp_wire"),
    );
}

#[test]
fn a_fresh_directory_is_empty() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let work = dir.path().join("a/b");
    let made = fresh(&work).expect("made");
    std::fs::write(made.join("old"), "x").expect("written");
    assert_eq!(
        fresh(&work)
            .expect("emptied")
            .read_dir()
            .expect("listed")
            .count(),
        0
    );
}
