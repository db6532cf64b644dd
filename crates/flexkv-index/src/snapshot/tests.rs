//! What the index promises, case by case; at random against a plain map; beside a writer.

mod beside_writer;
mod model;
mod size;

use std::collections::BTreeSet;

use flexkv_block::{Generation, SlotId, Tier};

use super::*;

const NOBODY: OwnerSet = OwnerSet::EMPTY;

fn key(fingerprint: u64) -> BlockKey {
    BlockKey::from_u128((0xabcd << 64) | u128::from(fingerprint))
}

fn keys(fingerprints: &[u64]) -> Vec<BlockKey> {
    fingerprints.iter().map(|block| key(*block)).collect()
}

/// A location that tells whose and which block it is of.
fn location(owner: OwnerId, fingerprint: u64) -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(fingerprint as u32 ^ (fingerprint >> 32) as u32),
        generation: Generation::new(u32::from(owner.0) + 1).unwrap(),
    }
}

fn locations(owner: OwnerId, fingerprints: &[u64]) -> Vec<Location> {
    let location = |block: &u64| location(owner, *block);
    fingerprints.iter().map(location).collect()
}

fn add(writer: &mut SnapshotWriter, owner: OwnerId, fingerprints: &[u64]) {
    writer.add_run(owner, None, fingerprints, &locations(owner, fingerprints));
}

fn live_owner(writer: &mut SnapshotWriter) -> OwnerId {
    let owner = writer.add_owner().unwrap();
    writer.set_live(owner, true);
    owner
}

fn find(
    reader: &Snapshot,
    fingerprints: &[u64],
    prefer: Option<OwnerId>,
    exclude: &OwnerSet,
) -> PrefixMatch {
    let mut found = PrefixMatch::default();
    let options = MatchOptions { prefer, exclude };
    reader.match_prefix(&keys(fingerprints), &options, &mut found);
    found
}

fn run(owner: OwnerId, start: usize, len: usize) -> OwnerRun {
    OwnerRun { owner, start, len }
}

/// Asserts that nothing is left, neither blocks nor memory in use.
fn assert_empty(writer: &SnapshotWriter, reader: &Snapshot) {
    let stats = writer.stats();
    assert_eq!(stats, reader.stats());
    assert_eq!((stats.segments, stats.blocks, stats.replicas), (0, 0, 0));
    assert_eq!(writer.arena_words_in_use(), 0);
}

#[test]
fn an_empty_index_and_an_empty_prompt_match_nothing() {
    let (mut writer, reader) = snapshot();
    assert_eq!(
        find(&reader, &[1, 2], None, &NOBODY),
        PrefixMatch::default()
    );
    let owner = live_owner(&mut writer);
    add(&mut writer, owner, &[1, 2]);
    assert_eq!(find(&reader, &[], None, &NOBODY), PrefixMatch::default());
    assert_eq!(find(&reader, &[2], None, &NOBODY).blocks, 0);
    let mut out = Vec::new();
    reader.locate(&[], run(owner, 0, 3), &mut out);
    assert_eq!(out, [None; 3]);
}

#[test]
fn long_runs_are_preferred_but_ones_own_blocks_come_first() {
    let (mut writer, reader) = snapshot();
    let [long, short, own] = [(); 3].map(|()| live_owner(&mut writer));
    let prompt: Vec<u64> = (10..30).collect();
    add(&mut writer, short, &prompt[..12]);
    add(&mut writer, long, &prompt);
    add(&mut writer, own, &prompt[..3]);
    writer.add_run(
        own,
        Some(prompt[6]),
        &prompt[7..9],
        &locations(own, &prompt[7..9]),
    );
    let found = find(&reader, &prompt, None, &NOBODY);
    assert_eq!(
        (found.blocks, &found.runs[..]),
        (20, &[run(long, 0, 20)][..])
    );
    let found = find(&reader, &prompt, Some(own), &NOBODY);
    let (head, mid, tail) = (found.runs[0], found.runs[2], found.runs[3]);
    assert_eq!((head, mid), (run(own, 0, 3), run(own, 7, 2)));
    assert_eq!((found.runs[1].start, found.runs[1].len), (3, 4));
    assert_eq!((tail, found.blocks), (run(long, 9, 11), 20));
    let mut held = Vec::new();
    reader.holds(&keys(&prompt[..10]), own, &mut held);
    let expected = [
        true, true, true, false, false, false, false, true, true, false,
    ];
    assert_eq!(held, expected);
}

#[test]
fn liveness_and_exclusion_hide_blocks_and_bring_them_back() {
    let (mut writer, reader) = snapshot();
    let owner = writer.add_owner().unwrap();
    add(&mut writer, owner, &[1, 2, 3]);
    assert_eq!(find(&reader, &[1, 2, 3], Some(owner), &NOBODY).blocks, 0);
    writer.set_live(owner, true);
    assert_eq!(find(&reader, &[1, 2, 3], None, &NOBODY).blocks, 3);
    let mut exclude = OwnerSet::default();
    exclude.insert(owner);
    assert_eq!(find(&reader, &[1, 2, 3], Some(owner), &exclude).blocks, 0);
    writer.remove_owner(owner);
    assert_eq!(find(&reader, &[1, 2, 3], None, &NOBODY).blocks, 0);
    writer.set_live(owner, true);
    add(&mut writer, owner, &[4]);
    assert_eq!(
        find(&reader, &[4], None, &NOBODY).blocks,
        0,
        "it is gone for good"
    );
    assert!(writer.sweep(10));
    assert_empty(&writer, &reader);
}

#[test]
fn every_owner_slot_works_and_comes_back_only_after_its_sweep() {
    let (mut writer, reader) = snapshot();
    let prompt: Vec<u64> = (0..MAX_OWNERS as u64).collect();
    let owners: Vec<OwnerId> = prompt.iter().map(|_| live_owner(&mut writer)).collect();
    assert_eq!(writer.add_owner(), None);
    for (block, owner) in owners.iter().enumerate() {
        add(&mut writer, *owner, &prompt[..1]);
        add(&mut writer, *owner, &prompt[block..=block]);
    }
    let found = find(&reader, &prompt, None, &NOBODY);
    assert_eq!(found.blocks, MAX_OWNERS);
    assert!(
        found.runs[1..]
            .iter()
            .all(|run| run.owner == owners[run.start] && run.len == 1)
    );
    assert_eq!(
        find(&reader, &prompt[..1], Some(owners[777]), &NOBODY).runs[0]
            .owner
            .0,
        777
    );
    writer.remove_owner(owners[700]);
    assert_eq!(find(&reader, &prompt, None, &NOBODY).blocks, 700);
    assert_eq!(writer.add_owner(), None);
    while !writer.sweep(1) {}
    assert_eq!(writer.add_owner(), Some(owners[700]));
    assert_eq!(writer.add_owner(), None);
}

#[test]
fn prompts_spread_over_equal_owners() {
    let (mut writer, reader) = snapshot();
    let owners = [(); 5].map(|()| live_owner(&mut writer));
    for owner in owners {
        add(&mut writer, owner, &[1, 2]);
    }
    let first_owner = |tail: u64| find(&reader, &[1, 2, tail], None, &NOBODY).runs[0].owner;
    let used: BTreeSet<OwnerId> = (100..200).map(first_owner).collect();
    assert_eq!(used, BTreeSet::from(owners));
}

#[test]
fn growing_loses_nothing() {
    let (mut writer, reader) = snapshot();
    let owner = live_owner(&mut writer);
    let mut rng = fastrand::Rng::with_seed(7);
    let long: Vec<Vec<u64>> = (0..400)
        .map(|_| (0..700).map(|_| rng.u64(..)).collect())
        .collect();
    let short: Vec<u64> = (0..20_000).map(|_| rng.u64(..)).collect();
    for prompt in &long {
        add(&mut writer, owner, prompt);
    }
    for block in &short {
        add(&mut writer, owner, &[*block]);
    }
    let stats = reader.stats();
    assert_eq!(stats.segments, 400 * 2 + 20_000);
    assert_eq!((stats.blocks, stats.replicas), (300_000, 300_000));
    for prompt in &long {
        assert_eq!(
            find(&reader, prompt, None, &NOBODY).runs,
            [run(owner, 0, 700)]
        );
    }
    for block in &short {
        assert_eq!(find(&reader, &[*block], None, &NOBODY).blocks, 1);
    }
    for prompt in &long {
        writer.remove(owner, prompt);
    }
    writer.remove(owner, &short);
    assert_empty(&writer, &reader);
}

#[test]
fn a_chain_that_came_in_pieces_becomes_few_segments() {
    let (mut writer, reader) = snapshot();
    let owners = [(); 2].map(|()| live_owner(&mut writer));
    let prompt: Vec<u64> = (1..=600).collect();
    for start in (0..prompt.len()).rev() {
        let parent = start.checked_sub(1).map(|parent| prompt[parent]);
        let block = &prompt[start..=start];
        for owner in &owners[..1 + start % 2] {
            writer.add_run(*owner, parent, block, &locations(*owner, block));
        }
    }
    add(&mut writer, owners[1], &prompt[300..]);
    assert_eq!(reader.stats().segments, 600);
    let before = find(&reader, &prompt, None, &NOBODY);
    while reader.stats().segments > 4 {
        let segments = reader.stats().segments;
        (0..50).for_each(|_| assert!(writer.sweep(1024)));
        assert!(reader.stats().segments < segments, "{segments} remain");
    }
    assert_eq!(find(&reader, &prompt, None, &NOBODY), before);
    for (owner, expected) in [(owners[0], 600), (owners[1], 450)] {
        let mut held = Vec::new();
        reader.holds(&keys(&prompt), owner, &mut held);
        assert_eq!(held.iter().filter(|held| **held).count(), expected);
    }
    let mut places = Vec::new();
    reader.locate(&keys(&prompt), run(owners[0], 0, 600), &mut places);
    let expected: Vec<_> = locations(owners[0], &prompt)
        .into_iter()
        .map(Some)
        .collect();
    assert_eq!(places, expected);
    owners
        .iter()
        .for_each(|owner| writer.remove(*owner, &prompt));
    assert_empty(&writer, &reader);
}

/// How the fingerprints of blocks 0, 1, 2 .. are made.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Starting at 0.
    Plain,
    /// With all the same low half, so that every tag in the table of heads is equal.
    SameTag,
    Random,
}

impl Numbers {
    fn fingerprint(self, block: u64) -> u64 {
        match self {
            Self::Plain => block,
            Self::SameTag => block << 32,
            Self::Random => fastrand::Rng::with_seed(block).u64(..),
        }
    }
}

/// Prompts of which each but the first shares its beginning with an earlier one.
fn prompts(numbers: Numbers, forks: &[(usize, usize, usize)]) -> Vec<Vec<u64>> {
    let mut prompts: Vec<Vec<u64>> = Vec::new();
    let mut blocks = 0;
    for (base, shared, len) in forks {
        let base = base.checked_rem(prompts.len()).map(|base| &prompts[base]);
        let mut prompt: Vec<u64> = base.into_iter().flatten().take(*shared).copied().collect();
        prompt.extend((0..*len as u64).map(|i| numbers.fingerprint(blocks + i)));
        blocks += *len as u64;
        prompts.push(prompt);
    }
    prompts
}
