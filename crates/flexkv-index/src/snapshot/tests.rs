//! The index against a plain map, and beside a concurrent writer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;

use flexkv_block::{Generation, SlotId, Tier};
use proptest::prelude::*;

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

/// What an index should contain.
#[derive(Default)]
struct Model {
    held: HashMap<u64, BTreeMap<OwnerId, Location>>,
    open: Vec<OwnerId>,
    live: BTreeSet<OwnerId>,
    removed: BTreeSet<OwnerId>,
    version: u32,
}

impl Model {
    fn owner(&self, choice: usize) -> Option<OwnerId> {
        let index = choice.checked_rem(self.open.len())?;
        Some(self.open[index])
    }

    fn holds(&self, block: u64, owner: OwnerId) -> bool {
        let owners = self.held.get(&block);
        owners.is_some_and(|owners| owners.contains_key(&owner))
    }

    fn location(&self, block: u64, owner: OwnerId) -> Option<Location> {
        self.held.get(&block)?.get(&owner).copied()
    }

    fn replicas(&self) -> usize {
        self.held.values().map(BTreeMap::len).sum()
    }

    /// Length of the longest prefix, and the least number of runs it takes.
    fn best(&self, prompt: &[u64], prefer: Option<OwnerId>, exclude: &OwnerSet) -> (usize, usize) {
        let usable: BTreeSet<OwnerId> = self.live.iter().copied().collect();
        let usable: BTreeSet<OwnerId> = usable
            .into_iter()
            .filter(|o| !exclude.contains(*o))
            .collect();
        let mut candidates = BTreeSet::new();
        let mut runs = 0;
        for (index, block) in prompt.iter().enumerate() {
            let holds = |owner: &OwnerId| usable.contains(owner) && self.holds(*block, *owner);
            let holders: BTreeSet<OwnerId> = match prefer.filter(holds) {
                Some(own) => BTreeSet::from([own]),
                None => usable.iter().copied().filter(holds).collect(),
            };
            if holders.is_empty() {
                return (index, runs);
            }
            let goes_on: BTreeSet<OwnerId> = candidates.intersection(&holders).copied().collect();
            if goes_on.is_empty() {
                runs += 1;
                candidates = holders;
            } else {
                candidates = goes_on;
            }
        }
        (prompt.len(), runs)
    }
}

#[derive(Clone, Debug)]
enum Op {
    AddOwner,
    SetLive {
        owner: usize,
        live: bool,
    },
    RemoveOwner {
        owner: usize,
    },
    Sweep {
        segments: usize,
    },
    Add {
        owner: usize,
        prompt: usize,
        start: usize,
        len: usize,
        parent: bool,
    },
    Remove {
        owner: usize,
        prompt: usize,
        start: usize,
        len: usize,
        order: Order,
    },
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Forward,
    Backward,
    EverySecond,
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

fn op() -> impl Strategy<Value = Op> {
    let (owner, prompt) = (any::<usize>(), any::<usize>());
    let order = prop_oneof![
        Just(Order::Forward),
        Just(Order::Backward),
        Just(Order::EverySecond)
    ];
    let place = (owner, prompt, 0..40usize, 1..40usize);
    prop_oneof![
        1 => Just(Op::AddOwner),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(owner, live)| Op::SetLive { owner, live }),
        1 => any::<usize>().prop_map(|owner| Op::RemoveOwner { owner }),
        2 => (0..6usize).prop_map(|segments| Op::Sweep { segments }),
        12 => (place.clone(), any::<bool>()).prop_map(
            |((owner, prompt, start, len), parent)| Op::Add { owner, prompt, start, len, parent }
        ),
        8 => (place, order).prop_map(
            |((owner, prompt, start, len), order)| Op::Remove { owner, prompt, start, len, order }
        ),
    ]
}

struct Check {
    writer: SnapshotWriter,
    reader: Snapshot,
    model: Model,
    prompts: Vec<Vec<u64>>,
}

impl Check {
    fn new(cap: usize, prompts: Vec<Vec<u64>>) -> Self {
        let (writer, reader) = with_max_segment_len(cap);
        let model = Model::default();
        let mut check = Self {
            writer,
            reader,
            model,
            prompts,
        };
        for owner in 0..3 {
            check.apply(&Op::AddOwner);
            check.apply(&Op::SetLive { owner, live: true });
        }
        check
    }

    /// The part of a prompt that an operation is about.
    fn part(&self, prompt: usize, start: usize, len: usize) -> (Option<u64>, Vec<u64>) {
        let prompt = &self.prompts[prompt % self.prompts.len()];
        let start = start % prompt.len();
        let end = (start + len).min(prompt.len());
        let parent = start.checked_sub(1).map(|parent| prompt[parent]);
        (parent, prompt[start..end].to_vec())
    }

    fn apply(&mut self, op: &Op) {
        let model = &mut self.model;
        match *op {
            Op::AddOwner => {
                let owner = self.writer.add_owner().unwrap();
                assert!(!model.open.contains(&owner) && !model.removed.contains(&owner));
                model.open.push(owner);
            }
            Op::SetLive { owner, live } => {
                let Some(owner) = model.owner(owner) else {
                    return;
                };
                self.writer.set_live(owner, live);
                model.live.remove(&owner);
                model.live.extend(live.then_some(owner));
            }
            Op::RemoveOwner { owner } => {
                let Some(owner) = model.owner(owner) else {
                    return;
                };
                self.writer.remove_owner(owner);
                model.live.remove(&owner);
                model.open.retain(|open| *open != owner);
                model.removed.insert(owner);
                for owners in model.held.values_mut() {
                    owners.remove(&owner);
                }
            }
            Op::Sweep { segments } => {
                if self.writer.sweep(segments) {
                    model.removed.clear();
                    assert_eq!(self.writer.stats().replicas, model.replicas());
                }
            }
            Op::Add {
                owner,
                prompt,
                start,
                len,
                parent,
            } => {
                let Some(owner) = model.owner(owner) else {
                    return;
                };
                self.add(owner, prompt, start, len, parent);
            }
            Op::Remove {
                owner,
                prompt,
                start,
                len,
                order,
            } => {
                let Some(owner) = model.owner(owner) else {
                    return;
                };
                self.remove(owner, prompt, start, len, order);
            }
        }
    }

    fn add(&mut self, owner: OwnerId, prompt: usize, start: usize, len: usize, parent: bool) {
        let (before, run) = self.part(prompt, start, len);
        let mut locations = Vec::new();
        for block in &run {
            self.model.version += 1;
            let location = Location {
                tier: Tier::Ssd,
                slot: SlotId(*block as u32),
                generation: Generation::new(self.model.version).unwrap(),
            };
            locations.push(location);
            let owners = self.model.held.entry(*block).or_default();
            owners.insert(owner, location);
        }
        let before = before.filter(|_| parent);
        self.writer.add_run(owner, before, &run, &locations);
    }

    fn remove(&mut self, owner: OwnerId, prompt: usize, start: usize, len: usize, order: Order) {
        let (_, mut run) = self.part(prompt, start, len);
        match order {
            Order::Forward => {}
            Order::Backward => run.reverse(),
            Order::EverySecond => run = run.into_iter().step_by(2).collect(),
        }
        for block in &run {
            self.model.held.entry(*block).or_default().remove(&owner);
        }
        self.writer.remove(owner, &run);
    }

    fn compare(&self, rng: &mut fastrand::Rng) {
        for prompt in &self.prompts {
            let query = &prompt[..rng.usize(..=prompt.len())];
            let owner = |rng: &mut fastrand::Rng| OwnerId(rng.u16(..8));
            let prefer = rng.bool().then(|| owner(rng));
            let mut exclude = NOBODY;
            if rng.bool() {
                exclude.insert(owner(rng));
            }
            let found = find(&self.reader, query, prefer, &exclude);
            let best = self.model.best(query, prefer, &exclude);
            assert_eq!(
                (found.blocks, found.runs.len()),
                best,
                "{query:?} {prefer:?}"
            );
            self.check_runs(query, &found, prefer, &exclude);
            self.check_holds(query, owner(rng));
        }
    }

    fn check_runs(
        &self,
        query: &[u64],
        found: &PrefixMatch,
        prefer: Option<OwnerId>,
        exclude: &OwnerSet,
    ) {
        let own = prefer.filter(|own| self.model.live.contains(own) && !exclude.contains(*own));
        let mut end = 0;
        for run in &found.runs {
            assert_eq!(run.start, end);
            end += run.len;
            let usable = self.model.live.contains(&run.owner) && !exclude.contains(run.owner);
            assert!(usable && run.len > 0);
            let mut locations = vec![None];
            self.reader.locate(&keys(query), *run, &mut locations);
            assert_eq!(locations.len(), 1 + run.len);
            for (block, location) in query[run.start..end].iter().zip(&locations[1..]) {
                assert_eq!(*location, self.model.location(*block, run.owner));
                assert!(location.is_some());
                let owned = own.filter(|own| self.model.holds(*block, *own));
                assert!(owned.is_none_or(|own| own == run.owner));
            }
        }
        assert_eq!(end, found.blocks);
    }

    fn check_holds(&self, query: &[u64], owner: OwnerId) {
        let mut held = vec![true; 3];
        self.reader.holds(&keys(query), owner, &mut held);
        let live = self.model.live.contains(&owner);
        let expected = query
            .iter()
            .map(|block| live && self.model.holds(*block, owner));
        assert_eq!(held, expected.collect::<Vec<bool>>());
    }

    /// Removes all there is, block by block or owner by owner, and looks for leaks.
    fn finish(mut self, rng: &mut fastrand::Rng) {
        for owner in std::mem::take(&mut self.model.open) {
            if rng.bool() {
                self.writer.remove_owner(owner);
                continue;
            }
            for prompt in &self.prompts {
                self.writer.remove(owner, prompt);
            }
        }
        while !self.writer.sweep(3) {}
        assert_empty(&self.writer, &self.reader);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_map(
        cap in prop_oneof![Just(1usize), Just(3), Just(7), Just(16), Just(512)],
        numbers in prop_oneof![Just(Numbers::Plain), Just(Numbers::SameTag), Just(Numbers::Random)],
        forks in prop::collection::vec((any::<usize>(), 0..40usize, 1..40usize), 1..8),
        ops in prop::collection::vec(op(), 1..60),
        seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut check = Check::new(cap, prompts(numbers, &forks));
        for op in &ops {
            check.apply(op);
            check.compare(&mut rng);
        }
        check.finish(&mut rng);
    }

    #[test]
    fn garbage_does_no_harm(
        cap in 1..6usize,
        runs in prop::collection::vec(
            (0..3u16, prop::option::of(0..12u64), prop::collection::vec(0..12u64, 0..10), any::<bool>()),
            1..60,
        ),
        queries in prop::collection::vec(prop::collection::vec(0..12u64, 0..12), 10),
    ) {
        let (mut writer, reader) = with_max_segment_len(cap);
        let owners = [(); 2].map(|()| live_owner(&mut writer));
        for (owner, parent, run, add) in &runs {
            let owner = OwnerId(*owner);
            if *add {
                writer.add_run(owner, *parent, run, &locations(owner, run));
            } else {
                writer.remove(owner, run);
            }
            for query in &queries {
                let found = find(&reader, query, None, &NOBODY);
                prop_assert!(found.blocks <= query.len());
                let covered: usize = found.runs.iter().map(|run| run.len).sum();
                prop_assert_eq!(covered, found.blocks);
            }
        }
        for owner in owners {
            writer.remove(owner, &(0..12).collect::<Vec<u64>>());
        }
        assert_empty(&writer, &reader);
    }
}

/// Tells the writer to stop when the reader is through, or fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes the index at random until told to stop.
fn disturb(writer: &mut SnapshotWriter, prompts: &[Vec<u64>], stop: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut owners: Vec<OwnerId> = (0..5).map(|_| live_owner(writer)).collect();
    while !stop.load(Ordering::Relaxed) {
        let owner = owners[rng.usize(..owners.len())];
        let prompt = &prompts[rng.usize(..prompts.len())];
        let start = rng.usize(..prompt.len());
        let run = &prompt[start..prompt.len().min(start + rng.usize(1..60))];
        match rng.u32(..200) {
            0 => {
                writer.remove_owner(owner);
                owners.retain(|other| *other != owner);
                owners.push(live_owner(writer));
            }
            1..80 => writer.remove(owner, run),
            80..100 => {
                writer.sweep(2);
            }
            _ => {
                let parent = start.checked_sub(1).map(|parent| prompt[parent]);
                writer.add_run(owner, parent, run, &locations(owner, run));
            }
        }
    }
}

#[test]
fn answers_beside_a_writer_are_never_garbage() {
    let forks: Vec<(usize, usize, usize)> = (0..12).map(|i| (i / 2, 17 * i, 150)).collect();
    let prompts = prompts(Numbers::Random, &forks);
    let (mut writer, reader) = with_max_segment_len(64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| disturb(&mut writer, &prompts, &stop));
        let mut rng = fastrand::Rng::with_seed(4);
        let (mut found, mut places) = (PrefixMatch::default(), Vec::new());
        let (mut matched, mut located) = (0, 0);
        for _ in 0..100_000 {
            let prompt = &prompts[rng.usize(..prompts.len())];
            let query = keys(prompt);
            let prefer = rng.bool().then(|| OwnerId(rng.u16(..6)));
            let options = MatchOptions {
                prefer,
                exclude: &NOBODY,
            };
            reader.match_prefix(&query, &options, &mut found);
            matched += found.blocks;
            let mut end = 0;
            for run in &found.runs {
                assert_eq!(run.start, end);
                end += run.len;
                places.clear();
                reader.locate(&query, *run, &mut places);
                for (block, place) in prompt[run.start..end].iter().zip(&places) {
                    assert!(place.is_none_or(|place| place == location(run.owner, *block)));
                    located += usize::from(place.is_some());
                }
            }
            assert_eq!((end, end <= prompt.len()), (found.blocks, true));
        }
        assert!(matched > 0 && located > matched / 2, "{matched} {located}");
    });
}
