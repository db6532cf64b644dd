//! The residency against simple models: which blocks, in which order they go, in which runs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn key(n: u64) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn at(tier: Tier, slot: u32) -> Location {
    Location {
        tier,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    }
}

/// Stores a prompt whose blocks are numbered as given, in host slots of the same numbers.
fn store(held: &mut Residency, prompt: &[u64]) {
    for (i, n) in prompt.iter().enumerate() {
        let parent = i.checked_sub(1).map(|i| key(prompt[i]));
        held.insert(key(*n), parent, at(Tier::Host, *n as u32));
    }
}

/// All blocks of a tier, those to give up first coming first.
fn order(held: &mut Residency, tier: Tier) -> Vec<(BlockKey, Location)> {
    let first = held.next_victim(tier, None);
    std::iter::successors(first, |(key, _)| held.next_victim(tier, Some(*key))).collect()
}

fn victims(held: &mut Residency, tier: Tier) -> Vec<u32> {
    let order = order(held, tier).into_iter();
    order.map(|(_, at)| at.slot.0).collect()
}

fn keys(numbers: &[u64]) -> Vec<BlockKey> {
    numbers.iter().copied().map(key).collect()
}

#[test]
fn tails_go_before_heads() {
    let mut held = Residency::<Lru>::default();
    store(&mut held, &[1, 2, 3]);
    assert_eq!(victims(&mut held, Tier::Host), [3, 2, 1], "as stored");
    store(&mut held, &[10, 11]);
    assert_eq!(victims(&mut held, Tier::Host), [3, 2, 1, 11, 10]);
    held.touch(&keys(&[1, 2, 99]));
    assert_eq!(victims(&mut held, Tier::Host), [3, 11, 10, 2, 1]);
    store(&mut held, &[1, 2, 4]);
    assert_eq!(victims(&mut held, Tier::Host), [3, 11, 10, 4, 2, 1]);
}

#[test]
fn a_block_in_two_tiers_is_given_up_tier_by_tier() {
    let mut held = Residency::<Lru>::default();
    let (host, ssd) = (at(Tier::Host, 1), at(Tier::Ssd, 7));
    assert_eq!(held.insert(key(1), None, ssd), None);
    assert_eq!(held.get(key(1)), Some(ssd));
    assert_eq!(held.insert(key(1), None, host), None);
    assert_eq!(held.get(key(1)), Some(host), "the faster tier");
    assert_eq!(held.get_in(key(1), Tier::Ssd), Some(ssd));
    assert_eq!(held.len(), 1);
    assert_eq!(victims(&mut held, Tier::Ssd), [7]);

    assert_eq!(held.remove(key(1), at(Tier::Host, 2)), Removed::Absent);
    assert_eq!(held.remove(key(1), host), Removed::Left(ssd));
    assert_eq!(held.remove(key(1), host), Removed::Absent);
    assert_eq!(held.remove(key(1), ssd), Removed::Gone);
    assert!(held.is_empty());
    assert_eq!(held.get(key(1)), None);
    assert_eq!(victims(&mut held, Tier::Ssd), []);
}

#[test]
fn a_block_stored_again_says_where_it_was() {
    let mut held = Residency::<Lru>::default();
    held.insert(key(1), None, at(Tier::Host, 1));
    let before = held.insert(key(1), None, at(Tier::Host, 2));
    assert_eq!(before, Some(at(Tier::Host, 1)));
    assert_eq!(victims(&mut held, Tier::Host), [2]);
}

#[test]
fn keys_with_one_fingerprint_are_two_blocks() {
    let mut held = Residency::<Lru>::default();
    let (a, b) = (BlockKey::from_u128(5), BlockKey::from_u128(1 << 64 | 5));
    held.insert(a, None, at(Tier::Host, 1));
    held.insert(b, None, at(Tier::Host, 2));
    assert_eq!(held.get(a), Some(at(Tier::Host, 1)));
    assert_eq!(held.get(b), Some(at(Tier::Host, 2)));
}

#[test]
fn leading_stops_at_the_first_hole() {
    let mut held = Residency::<Lru>::default();
    store(&mut held, &[1, 2, 3]);
    held.remove(key(2), at(Tier::Host, 2));
    assert_eq!(held.leading(&keys(&[1, 2, 3])), 1);
    assert_eq!(held.parent(key(3)), Some(key(2)));
}

/// Calls `each` with all runs, which are looked for in parts of so many steps.
fn tell_all(held: &Residency, part: usize, mut each: impl FnMut(LiveRun<'_>)) {
    let mut walk = Walk::default();
    while !walk.is_over() {
        held.tell(&mut walk, part, &mut each);
    }
}

/// All blocks and their parents as they are told, in that order.
fn told(held: &Residency, part: usize) -> Vec<(u64, Option<u64>)> {
    let mut told = Vec::new();
    tell_all(held, part, |run| {
        assert_eq!(run.fingerprints.len(), run.locations.len());
        assert!(!run.fingerprints.is_empty());
        let mut parent = run.parent;
        for fingerprint in run.fingerprints {
            told.push((*fingerprint, parent));
            parent = Some(*fingerprint);
        }
    });
    told
}

#[test]
fn a_long_prompt_is_told_in_pieces_that_follow_each_other() {
    let mut held = Residency::<Lru>::default();
    let prompt: Vec<u64> = (1..=10_000).collect();
    store(&mut held, &prompt);
    for part in [usize::MAX, 1000] {
        let mut runs = Vec::new();
        tell_all(&held, part, |run| {
            runs.push((run.parent, run.fingerprints.to_vec()));
        });
        assert!(runs.len() >= 3);
        assert_eq!(runs[0].0, None);
        for pair in runs.windows(2) {
            assert_eq!(pair[1].0, pair[0].1.last().copied());
        }
        assert_eq!(told(&held, part).len(), prompt.len());
    }
}

#[test]
fn prompts_that_grew_side_by_side_are_told_one_after_the_other() {
    let mut held = Residency::<Lru>::default();
    for n in 1..=100_u64 {
        for prompt in 0..10_u64 {
            let key_of = |n: u64| key(1000 * prompt + n);
            let parent = (n > 1).then(|| key_of(n - 1));
            let slot = (100 * prompt + n) as u32;
            held.insert(key_of(n), parent, at(Tier::Host, slot));
        }
    }
    let mut lengths = Vec::new();
    tell_all(&held, usize::MAX, |run| {
        lengths.push(run.fingerprints.len());
    });
    assert_eq!(lengths, [100; 10]);
}

#[test]
fn blocks_that_claim_to_be_each_others_parents_are_told() {
    let mut held = Residency::<Lru>::default();
    held.insert(key(1), Some(key(2)), at(Tier::Host, 1));
    held.insert(key(2), Some(key(1)), at(Tier::Host, 2));
    held.insert(key(3), Some(key(3)), at(Tier::Host, 3));
    assert_eq!(told(&held, 1).len(), 3);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, bool, u32),
    Remove(u64, bool),
    Touch(u64),
}

/// Block `n` comes after block `n / 2`.
fn path(n: u64) -> Vec<u64> {
    let mut path: Vec<_> = std::iter::successors(Some(n), |n| Some(n / 2))
        .take_while(|n| *n > 0)
        .collect();
    path.reverse();
    path
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..64, any::<bool>(), any::<u32>()).prop_map(|(n, ssd, s)| Step::Insert(n, ssd, s)),
        2 => (1u64..64, any::<bool>()).prop_map(|(n, ssd)| Step::Remove(n, ssd)),
        1 => (1u64..64).prop_map(Step::Touch),
    ]
}

const fn tier(ssd: bool) -> Tier {
    if ssd { Tier::Ssd } else { Tier::Host }
}

proptest! {
    #[test]
    fn it_agrees_with_a_map(
        steps in prop::collection::vec(any_step(), 0..200),
        part in 1usize..300,
    ) {
        let mut held = Residency::<Lru>::default();
        let mut model: BTreeMap<(u64, Tier), Location> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(n, ssd, slot) => {
                    let parent = (n > 1).then(|| key(n / 2));
                    let here = at(tier(ssd), slot);
                    let before = held.insert(key(n), parent, here);
                    prop_assert_eq!(before, model.insert((n, tier(ssd)), here));
                }
                Step::Remove(n, ssd) => match model.remove(&(n, tier(ssd))) {
                    Some(here) => {
                        let left = model.get(&(n, tier(!ssd))).copied();
                        let expected = left.map_or(Removed::Gone, Removed::Left);
                        prop_assert_eq!(held.remove(key(n), here), expected);
                    }
                    None => {
                        let removed = held.remove(key(n), at(tier(ssd), 0));
                        prop_assert_eq!(removed, Removed::Absent);
                    }
                },
                Step::Touch(n) => held.touch(&keys(&path(n))),
            }
        }
        for tier in TIERS {
            let found: BTreeSet<_> = order(&mut held, tier).into_iter().collect();
            let expected: BTreeSet<_> = model
                .iter()
                .filter(|((_, at), _)| *at == tier)
                .map(|((n, _), location)| (key(*n), *location))
                .collect();
            prop_assert_eq!(order(&mut held, tier).len(), expected.len());
            prop_assert_eq!(held.len_in(tier), expected.len());
            prop_assert_eq!(found, expected);
        }
        let expected: BTreeSet<u64> = model.keys().map(|(n, _)| key(*n).fingerprint()).collect();
        let told = told(&held, part);
        let mut seen = BTreeSet::new();
        for (fingerprint, parent) in &told {
            let late = parent.is_some_and(|p| expected.contains(&p) && !seen.contains(&p));
            prop_assert!(!late, "a child was told before its parent");
            prop_assert!(seen.insert(*fingerprint), "a block was told twice");
        }
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(held.iter().count(), held.len());
    }
}
