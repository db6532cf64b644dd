//! Commands read as they would be typed, and failures name them.

use super::*;

#[test]
fn a_command_reads_as_typed() {
    let run = Run::cargo("doc --no-deps")
        .args(["a b", "it's"])
        .env("RUSTDOCFLAGS", "-D warnings");
    assert_eq!(
        run.to_string(),
        r"RUSTDOCFLAGS='-D warnings' cargo doc --no-deps 'a b' 'it'\''s'"
    );
}

#[test]
fn a_failure_names_the_command() {
    let error = Run::new("false").args(["--now"]).run().expect_err("fails");
    assert!(
        error.to_string().starts_with("`false --now` failed"),
        "{error}"
    );
    let error = Run::new("no-such-program").run().expect_err("fails");
    assert_eq!(error.to_string(), "cannot start `no-such-program`");
}

#[test]
fn output_is_read() {
    assert_eq!(
        Run::new("echo").args(["hello"]).read().ok(),
        Some("hello\n".to_owned())
    );
    let (success, text) = Run::new("ls")
        .args(["/no/such/file"])
        .capture()
        .expect("starts");
    assert!(!success);
    assert!(text.contains("/no/such/file"), "{text}");
}

#[test]
fn programs_are_found_in_path() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("tool"), "").expect("written");
    let path = dir.path().as_os_str();
    assert_eq!(find_in(path, "tool"), Some(dir.path().join("tool")));
    assert_eq!(find_in(path, "other"), None);
}
