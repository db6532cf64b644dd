//! The index against a plain map of block and owner to location.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

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
    /// A conversation goes on at an owner, which then holds it from the start.
    Turn {
        owner: usize,
        prompt: usize,
        len: usize,
    },
    /// An owner needs room: a conversation loses its end there, or all.
    Evict {
        owner: usize,
        prompt: usize,
        keep: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Forward,
    Backward,
    EverySecond,
}

fn op() -> impl Strategy<Value = Op> {
    let (owner, prompt) = (any::<usize>(), any::<usize>());
    let order = prop_oneof![
        Just(Order::Forward),
        Just(Order::Backward),
        Just(Order::EverySecond)
    ];
    let conversation = (owner, prompt, 0..80usize);
    let (owner, prompt) = (any::<usize>(), any::<usize>());
    let place = (owner, prompt, 0..40usize, 1..40usize);
    prop_oneof![
        1 => Just(Op::AddOwner),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(owner, live)| Op::SetLive { owner, live }),
        1 => any::<usize>().prop_map(|owner| Op::RemoveOwner { owner }),
        3 => (0..200usize).prop_map(|segments| Op::Sweep { segments }),
        12 => (place.clone(), any::<bool>()).prop_map(
            |((owner, prompt, start, len), parent)| Op::Add { owner, prompt, start, len, parent }
        ),
        8 => (place, order).prop_map(
            |((owner, prompt, start, len), order)| Op::Remove { owner, prompt, start, len, order }
        ),
        6 => conversation.clone().prop_map(|(owner, prompt, len)| Op::Turn { owner, prompt, len }),
        3 => conversation.prop_map(|(owner, prompt, keep)| Op::Evict { owner, prompt, keep }),
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
        let end = start.saturating_add(len).min(prompt.len());
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
            Op::Turn { owner, prompt, len } => {
                if let Some(owner) = model.owner(owner) {
                    self.add(owner, prompt, 0, len, true);
                }
            }
            Op::Evict {
                owner,
                prompt,
                keep,
            } => {
                if let Some(owner) = model.owner(owner) {
                    self.remove(owner, prompt, keep, usize::MAX, Order::Backward);
                }
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
            self.check_replicas(query, &exclude);
        }
    }

    fn check_replicas(&self, query: &[u64], exclude: &OwnerSet) {
        let mut runs = vec![run(OwnerId(0), 0, 0)];
        self.reader.replicas(&keys(query), exclude, &mut runs);
        let blocks = runs.iter().flat_map(|run| {
            let blocks = run.start..run.start + run.len;
            blocks.map(|block| (block, run.owner))
        });
        let mut found: Vec<_> = blocks.collect();
        found.sort_unstable();
        let usable = self.model.live.iter().filter(|o| !exclude.contains(**o));
        let usable: Vec<OwnerId> = usable.copied().collect();
        let expected = query.iter().enumerate().flat_map(|(index, block)| {
            let held = usable.iter().filter(|o| self.model.holds(*block, **o));
            held.map(move |owner| (index, *owner))
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
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
