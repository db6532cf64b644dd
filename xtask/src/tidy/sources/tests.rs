//! Each rule with what it accepts and what it refuses.

use super::*;

fn found(file: &str, text: &str) -> Vec<String> {
    let text = format!("//! A file.\n{text}\n");
    let findings = check(file, &text, |path| path == "a/tests/golden/frame.bin");
    findings
        .iter()
        .map(|finding| format!("{}: {}", finding.line, finding.what))
        .collect()
}

fn accepts(text: &str) {
    assert_eq!(found("a/src/lib.rs", text), [""; 0], "{text}");
}

fn refuses(text: &str, what: &str) {
    assert_eq!(found("a/src/lib.rs", text), [what], "{text}");
}

#[test]
fn a_file_says_what_it_is() {
    assert!(opens_with_doc("a.rs", "//! This.\nfn a() {}").is_none());
    assert!(opens_with_doc("a.rs", "// This.\n").is_some());
    assert!(opens_with_doc("a.rs", "").is_some());
}

#[test]
fn a_file_is_short_enough() {
    accepts(&"//\n".repeat(MAX_LINES - 2));
    refuses(
        &"//\n".repeat(MAX_LINES),
        "0: has 602 lines, the limit is 600",
    );
}

#[test]
fn nothing_is_left_for_later() {
    for word in LATER {
        refuses(&format!("// {word} x"), &format!("2: has `{word}`"));
    }
    accepts(concat!(
        "// mkstemp(aXX",
        "XXXX) and TO",
        "DOS are words of their own"
    ));
}

#[test]
fn lints_are_allowed_with_a_reason_only() {
    let allow = concat!("#[al", "low(");
    refuses(
        &format!("{allow}dead_code)]\nfn a() {{}}"),
        "2: allows a lint without a reason",
    );
    refuses(
        &format!("fn a() {{}}\n{}unused)]", allow.replace("#[", "#![")),
        "3: allows a lint without a reason",
    );
    accepts(&format!(
        "{allow}\n    dead_code,\n    reason = \"made by a macro\"\n)]"
    ));
}

#[test]
fn no_machine_is_meant() {
    for dir in MACHINES {
        let line = format!("let path = \"/{dir}/x\";");
        refuses(
            &line,
            &format!("2: has the path /{dir}/.. of a certain machine"),
        );
        assert_eq!(found("a/src/b/tests.rs", &line), [""; 0]);
        accepts(&format!("let path = \"a/{dir}/x\"; // see target/{dir}/y"));
    }
}

#[test]
fn included_files_exist() {
    let line = |name| format!("const A: &[u8] = include_bytes!(\"{name}\");");
    assert_eq!(
        found("a/tests/it/main.rs", &line("../golden/frame.bin")),
        [""; 0]
    );
    assert_eq!(
        found("a/tests/it/main.rs", &line("../golden/gone.bin")),
        ["2: includes a/tests/golden/gone.bin, which does not exist"]
    );
}
