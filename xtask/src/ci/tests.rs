//! The run stops at the first failure and its last line counts the steps.

use super::*;

fn step(name: &'static str, function: fn() -> Result<()>) -> Step {
    Step {
        name,
        work: Work::Call("nothing", function),
    }
}

fn good() -> Result<()> {
    Ok(())
}

fn bad() -> Result<()> {
    bail!("the reason")
}

fn summary(steps: &[Step]) -> (bool, Vec<String>) {
    let report = perform(steps);
    (report.failure.is_none(), report.lines(steps))
}

#[test]
fn the_last_line_counts_the_steps() {
    let (success, lines) = summary(&[step("one", good), step("two", good)]);
    assert!(success);
    assert_eq!(lines.last().map(String::as_str), Some("2 passed, 0 failed"));
}

#[test]
fn the_first_failure_stops_and_is_named() {
    let (success, lines) = summary(&[step("one", good), step("two", bad), step("three", good)]);
    assert!(!success);
    assert_eq!(lines.last().map(String::as_str), Some("1 passed, 1 failed"));
    let text = lines.join("\n");
    assert!(text.contains("step `two` failed: the reason"), "{text}");
    assert!(text.contains("cargo xtask ci two"), "{text}");
    let three = lines.iter().find(|line| line.starts_with("three"));
    assert!(three.is_some_and(|line| line.contains("not run")), "{text}");
}

#[test]
fn a_step_that_cannot_be_done_here_is_named_with_the_reason() {
    let elsewhere = Step {
        name: "two",
        work: Work::Where("nothing", || Ok(Some("no such machine".to_owned()))),
    };
    let (success, lines) = summary(&[step("one", good), elsewhere, step("three", good)]);
    assert!(success);
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some("2 passed, 1 left out, 0 failed"));
    let text = lines.join("\n");
    assert!(
        text.contains("step `two` was left out: no such machine"),
        "{text}"
    );
    let two = lines.iter().find(|line| line.starts_with("two"));
    assert!(two.is_some_and(|line| line.contains("LEFT OUT")), "{text}");
}

#[test]
fn steps_are_selected_in_their_own_order() {
    let names = |wanted: &[&str]| {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        select(steps(), &wanted).map(|steps| steps.iter().map(|step| step.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&["clippy", "fmt"]).ok(), Some(vec!["fmt", "clippy"]));
    assert_eq!(
        names(&[]).map(|names| names.len()).ok(),
        Some(steps().len())
    );
    let error = names(&["lint"]).expect_err("no such step").to_string();
    assert!(
        error.starts_with("there is no step `lint`; the steps are fmt, tidy"),
        "{error}"
    );
}

#[test]
fn no_test_is_left_out() {
    let text: Vec<_> = steps().iter().map(Step::describe).collect();
    for needed in ["--lib --bins", "--doc", "--test '*'", "--bench hot_paths"] {
        assert!(text.iter().any(|line| line.contains(needed)), "{needed}");
    }
}
