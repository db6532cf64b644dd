//! What is asked for becomes the simulation's command line.

use super::*;

fn check(seeds: Option<u64>, seed: Option<u64>, expect: &str) {
    let rest = Vec::new();
    let run = command(&Args { seeds, seed, rest }).to_string();
    assert!(run.ends_with(expect), "{run}");
}

#[test]
fn a_seed_alone_is_run_alone() {
    check(None, None, " -- --seeds 1000");
    check(None, Some(7), " -- --seeds 1 --seed 7");
    check(Some(30), Some(7), " -- --seeds 30 --seed 7");
}
