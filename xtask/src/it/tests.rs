//! What is asked for becomes cargo's command line.

use super::*;

fn check(packages: &[&str], rest: &[&str], expect: &str) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let args = Args {
        packages: words(packages),
        rest: words(rest),
    };
    assert_eq!(command(&args).to_string(), expect);
}

#[test]
fn suites_are_chosen_by_crate() {
    check(&[], &[], "cargo test --workspace --test '*'");
    check(
        &["flexkv", "flexkv-redis"],
        &["restart"],
        "cargo test --package flexkv --package flexkv-redis --test '*' -- restart",
    );
}
