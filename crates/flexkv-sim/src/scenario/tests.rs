//! The simulation itself: it passes, it repeats itself, and it finds what is planted.

use super::*;

fn seed(seed: u64) -> Options {
    Options { seed, plant: None }
}

#[test]
fn seeds_pass_and_blocks_do_move_between_nodes() {
    let mut remote = 0;
    for n in 0..40 {
        let report = run(seed(n));
        assert_eq!(
            report.failure,
            None,
            "seed {n}:\n{}",
            report.events.join("\n")
        );
        remote += report.remote_blocks;
    }
    assert!(
        remote > 1000,
        "only {remote} blocks were fetched from peers"
    );
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for n in [3, 77] {
        assert_eq!(run(seed(n)).events, run(seed(n)).events);
    }
    assert_ne!(run(seed(3)).events, run(seed(77)).events);
}

#[test]
fn a_planted_bug_is_found() {
    let planted = |seed| Options {
        seed,
        plant: Some(Plant::SkipGenerationCheck),
    };
    let found = (0..40).find_map(|n| run(planted(n)).failure);
    let failure = found.expect("40 seeds find a tier that ignores generations");
    assert!(
        failure.contains("wrong bytes") || failure.contains("asked for"),
        "{failure}"
    );
}
