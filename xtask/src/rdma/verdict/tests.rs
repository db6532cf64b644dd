//! Consoles of machines that passed, and of machines that did not.

use super::*;

const GOOD: &str = "[    0.1] booting\r\ntest a::b ... ok\r\ntest c ... ok\r\nFLEXKV-RESULT 0\r\n";

#[test]
fn a_run_passes_only_if_it_says_so() {
    assert_eq!(verdict(GOOD, None), Ok(2));
    let (unfinished, _) = GOOD.split_once("FLEXKV").expect("a result");
    let why = verdict(unfinished, None).expect_err("a panic");
    assert_eq!(why, "the machine ended without a result");
    let why = verdict(unfinished, Some(300)).expect_err("a hang");
    assert_eq!(why, "no result within 300 s");
    assert!(
        verdict(GOOD, Some(300)).is_err(),
        "it hung after its result"
    );
    assert!(verdict("", None).is_err());
}

#[test]
fn a_test_that_failed_is_named() {
    let bad = GOOD
        .replace("c ... ok", "c ... FAILED")
        .replace("RESULT 0", "RESULT 101");
    let why = verdict(&bad, None).expect_err("a failure");
    assert_eq!(why, "tests failed (status 101): c");
    assert_eq!(failed_tests(&bad), ["c"]);
    assert!(verdict(&GOOD.replace("c ... ok", "c ... FAILED"), None).is_err());
    assert!(verdict(&GOOD.replace("RESULT 0", "RESULT 1"), None).is_err());
}

#[test]
fn a_run_without_tests_or_with_a_problem_fails() {
    let why = verdict("FLEXKV-RESULT 0\n", None).expect_err("nothing ran");
    assert_eq!(why, "no test ran");
    let problem = format!("flexkv: PROBLEM no device\n{GOOD}");
    assert_eq!(verdict(&problem, None), Err("no device".to_owned()));
    let twice = format!("{GOOD}{GOOD}");
    assert_eq!(
        verdict(&twice, None),
        Err("the machine has 2 results".to_owned())
    );
}
