//! Files are found and sent to the rules for their kind.

use super::*;

#[test]
fn built_and_hidden_files_are_left_out() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for file in [
        "a/src/lib.rs",
        "target/debug/x.rs",
        ".git/config",
        ".ci/run",
        "fuzz/artifacts/t/crash",
    ] {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("made");
        std::fs::write(path, "").expect("written");
    }
    let found: Vec<_> = files(dir.path()).expect("listed").into_iter().collect();
    assert_eq!(found, [".ci/run", "a/src/lib.rs"]);
}

#[test]
fn each_kind_of_file_has_its_rules() {
    let files = BTreeSet::from(["docs/a.md".to_owned()]);
    let found = |file, text| {
        check_file(file, text, &files)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        found("a/src/lib.rs", "fn main() {}\n"),
        ["a/src/lib.rs:1: does not open with `//!`"]
    );
    assert_eq!(
        found("README.md", "[a](docs/b.md)"),
        ["README.md:1: links to docs/b.md, which does not exist"]
    );
    assert_eq!(
        found("README.md", "[a](docs/a.md) [b](docs/) [c](docs)"),
        [""; 0]
    );
    assert!(!found("a/Cargo.toml", "[package]\nname = \"a\"\n").is_empty());
    assert!(found("Cargo.toml", "[workspace]\n").is_empty());
    assert!(!found("CHANGELOG.md", "# Changes\n").is_empty());
}
