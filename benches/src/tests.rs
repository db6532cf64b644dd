//! The inputs are the same in every run, and different from each other.

use std::collections::HashSet;

use super::*;

#[test]
fn inputs_are_the_same_in_every_run() {
    // From the reference implementation of splitmix64 (prng.di.unimi.it), seed 0.
    assert_eq!(number(0, 0), 0xe220_a839_7b1d_cdaf);
    assert_eq!(number(0, 1), 0x6e78_9e6a_a1b9_65f4);
}

#[test]
fn prompts_have_nothing_in_common() {
    let all: Vec<_> = (0..64)
        .flat_map(|prompt| fingerprints(&keys(prompt, 256)))
        .collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
}

#[test]
fn lengths_are_as_asked() {
    assert_eq!(tokens(1, 33).len(), 33);
    assert_eq!(payload(1, 33).len(), 33);
    assert_eq!(locations(7, 3)[2].slot, SlotId(9));
    assert!(root().is_ok());
}
