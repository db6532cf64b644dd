//! Checkpoints that are made while blocks come and go: whoever reads one and what is behind it knows
//! what is held, and so does whoever read the log before it to its end.

use std::collections::BTreeMap;

use bytes::Bytes;
use flexkv_block::{BlockKey, Generation, NamespaceId, SlotId, Tier};
use proptest::prelude::*;

use super::*;
use crate::log::{EntryPlace, Op};
use crate::record::NodeId;
use crate::residency::{Removed, Residency};

const MS: Duration = Duration::from_millis(1);

/// Blocks by fingerprint, and where they lie.
type Known = BTreeMap<u64, Location>;

fn key(n: u64) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A node, its log in a store that takes everything, and two readers of it.
struct Owner {
    now: Duration,
    held: Residency,
    publisher: Publisher,
    slots: u32,
    logs: BTreeMap<String, BTreeMap<u64, Bytes>>,
    record: Option<NodeRecord>,
    longest: usize,
}

impl Owner {
    fn new(config: PublisherConfig) -> Self {
        let node = NodeId {
            name: "a".parse().expect("a good name"),
            incarnation: 1,
        };
        let id = NamespaceId::from_u128(1);
        let info = NodeInfo::new(node, id, 1, String::new(), vec![]).expect("good info");
        Self {
            now: MS,
            held: Residency::default(),
            publisher: Publisher::new(config, info),
            slots: 0,
            logs: BTreeMap::new(),
            record: None,
            longest: 0,
        }
    }

    fn new_location(&mut self, tier: Tier) -> Location {
        self.slots += 1;
        Location {
            tier,
            slot: SlotId(self.slots),
            generation: Generation::FIRST,
        }
    }

    /// Stores block `n`, which comes after block `n / 2`, whether that is here or not; or elsewhere
    /// than it was.
    fn store(&mut self, n: u64, tier: Tier) {
        let parent = (n > 1).then(|| key(n / 2));
        let location = self.new_location(tier);
        self.held.insert(key(n), parent, location);
        if let Some(best) = self.held.get(key(n)) {
            let parent = parent.map(BlockKey::fingerprint);
            let fingerprint = key(n).fingerprint();
            self.publisher
                .stored(self.now, parent, &[fingerprint], &[best]);
        }
    }

    fn evict(&mut self, n: u64, tier: Tier) {
        let Some(location) = self.held.get_in(key(n), tier) else {
            return;
        };
        let fingerprint = key(n).fingerprint();
        match self.held.remove(key(n), location) {
            Removed::Gone => self.publisher.removed(self.now, &[fingerprint]),
            Removed::Left(left) => {
                let parent = (n > 1).then(|| key(n / 2).fingerprint());
                self.publisher
                    .stored(self.now, parent, &[fingerprint], &[left]);
            }
            Removed::Absent => panic!("it was there"),
        }
    }

    /// Does the next thing, if there is one.
    fn step(&mut self) {
        self.now += MS;
        let Some(action) = self.publisher.poll(self.now, &self.held) else {
            return;
        };
        let mut outcome = PublishOutcome::Done;
        match action {
            PublishAction::Append {
                log,
                entries,
                create,
                ..
            } => {
                assert_eq!(create, !self.logs.contains_key(&log), "{log}");
                self.longest = self.longest.max(entries.len());
                self.logs.entry(log).or_default().extend(entries);
            }
            PublishAction::Renew { record, .. } => {
                self.record = Some(NodeRecord::decode(&record).expect("a good record"));
                outcome = PublishOutcome::Renewed {
                    lease_kept: true,
                    log_kept: true,
                };
            }
            PublishAction::Retire { .. } => {}
        }
        self.publisher.handle(self.now, outcome);
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.publisher.is_settled() {
                return;
            }
            self.step();
        }
        panic!("the publisher turns in circles");
    }

    /// What a reader knows who reads the log of `epoch` from `start` on, and the logs after it for as
    /// long as they end in one another; and in which epoch that ends.
    fn read(&self, epoch: u32, start: u64) -> (u32, Known) {
        let (mut epoch, mut next) = (epoch, start);
        let mut known = Known::new();
        let id = self.publisher.info.node();
        while let Some(bytes) = self.logs[&id.log(epoch)].get(&next) {
            let place = EntryPlace {
                incarnation: 1,
                sequence: next,
            };
            next += 1;
            match Entry::decode(bytes, place).expect("a good entry") {
                Entry::Checkpoint(batch) | Entry::Delta(batch) => apply(&mut known, &batch),
                Entry::CheckpointEnd => {}
                Entry::Rotate(rotate) => {
                    (epoch, next) = (rotate.next_epoch, rotate.resume_after + 1)
                }
            }
        }
        let last = self.logs[&id.log(epoch)].last_key_value();
        assert_eq!(last.map(|(sequence, _)| sequence + 1), Some(next), "a gap");
        (epoch, known)
    }

    /// Asserts that everyone who reads any log knows what is held.
    fn assert_known(&self) {
        let held: Known = self
            .held
            .iter()
            .map(|(key, at)| (key.fingerprint(), at))
            .collect();
        let record = self.record.as_ref().expect("announced");
        let (_, known) = self.read(record.epoch, record.log_start);
        assert_eq!(known, held, "read from the checkpoint on");
        let id = self.publisher.info.node();
        for epoch in 1..record.epoch {
            let Some(log) = self.logs.get(&id.log(epoch)) else {
                continue;
            };
            let Some((first, _)) = log.first_key_value() else {
                continue;
            };
            // One that was given up ends nowhere.
            let (end, known) = self.read(epoch, *first);
            if end == record.epoch {
                assert_eq!(known, held, "read from epoch {epoch} on");
            }
        }
    }
}

fn apply(known: &mut Known, batch: &Batch) {
    for op in batch.ops() {
        match op {
            Op::Add {
                fingerprints,
                locations,
                ..
            } => known.extend(fingerprints.iter().copied().zip(locations.iter().copied())),
            Op::Remove { fingerprints } => known.retain(|f, _| !fingerprints.contains(f)),
        }
    }
}

#[derive(Clone, Debug)]
enum Do {
    Store(u64, bool),
    Evict(u64, bool),
    /// All of it anew, as the store has lost it.
    Republish,
    Steps(u8),
}

fn anything() -> impl Strategy<Value = Do> {
    prop_oneof![
        20 => (1u64..100, any::<bool>()).prop_map(|(n, ssd)| Do::Store(n, ssd)),
        12 => (1u64..100, any::<bool>()).prop_map(|(n, ssd)| Do::Evict(n, ssd)),
        1 => Just(Do::Republish),
        15 => (1u8..8).prop_map(Do::Steps),
    ]
}

const fn tier(ssd: bool) -> Tier {
    if ssd { Tier::Ssd } else { Tier::Host }
}

proptest! {
    #[test]
    fn a_checkpoint_and_what_is_behind_it_are_what_is_held(
        before in 0u64..200,
        entry in 1usize..10,
        rotate in 50usize..1000,
        script in prop::collection::vec(anything(), 0..300),
    ) {
        let mut owner = Owner::new(PublisherConfig {
            max_entry_blocks: entry,
            rotate_min_bytes: rotate,
            ..PublisherConfig::default()
        });
        for n in 1..=before {
            owner.store(n, Tier::Host);
        }
        for act in script {
            match act {
                Do::Store(n, ssd) => owner.store(n, tier(ssd)),
                Do::Evict(n, ssd) => owner.evict(n, tier(ssd)),
                Do::Republish => owner.publisher.republish(),
                Do::Steps(n) => (0..n).for_each(|_| owner.step()),
            }
        }
        owner.settle();
        owner.assert_known();
    }
}

#[test]
fn a_part_of_a_checkpoint_has_no_more_than_an_entry_and_the_rest() {
    let mut owner = Owner::new(PublisherConfig {
        max_entry_blocks: 10,
        ..PublisherConfig::default()
    });
    for n in 1..=1000 {
        owner.store(n, Tier::Host);
    }
    owner.settle();
    owner.assert_known();
    assert!(owner.longest <= 3, "{} entries at once", owner.longest);
}

#[test]
fn changes_that_come_faster_than_a_checkpoint_is_taken_begin_another() {
    let mut owner = Owner::new(PublisherConfig {
        max_entry_blocks: 10,
        max_queue_bytes: 3000,
        ..PublisherConfig::default()
    });
    for n in 1..=1000 {
        owner.store(n, Tier::Host);
    }
    (0..5).for_each(|_| owner.step());
    assert!(owner.publisher.checkpoint.is_some(), "just begun");
    for n in 1001..=1400 {
        owner.store(n, Tier::Host);
    }
    assert_eq!(owner.publisher.stats().overflows, 1);
    assert_eq!(owner.publisher.queued_bytes(), 0);
    owner.settle();
    owner.assert_known();
    assert_eq!(owner.publisher.stats().epochs, 2);
}
