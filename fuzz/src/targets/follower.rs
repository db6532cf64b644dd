//! A follower fed with anything: lists of members, entries of every kind in any order, logs that
//! vanish, time that jumps. It keeps its bounds, and what a healthy node says afterwards is believed
//! exactly; nodes that are gone leave nothing behind.
//!
//! Knows nothing of stores; the bytes are a little program.

use std::collections::BTreeMap;
use std::time::Duration;

use flexkv_block::{BlockKey, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_index::log::{Batch, Entry, EntryPlace, Rotate};
use flexkv_index::{
    Follower, FollowerConfig, NodeId, NodeInfo, NodeRecord, OwnerRun, Snapshot, SnapshotWriter,
    snapshot,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "follower",
    run,
    seeds,
};

const NODES: u8 = 3;
const BLOCKS: u64 = 24;
/// Rounds after which a follower must have found its way.
const ROUNDS: usize = 100;

type Entries = Vec<(u64, Vec<u8>)>;

/// The bytes as a program: zeros when they are used up.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }
}

struct World {
    now: Duration,
    follower: Follower,
    writer: SnapshotWriter,
    snapshot: Snapshot,
    logs: BTreeMap<String, Entries>,
}

fn node(number: u8) -> NodeId {
    NodeId {
        name: ["a", "b", "c"][usize::from(number % NODES)]
            .parse()
            .unwrap_or_else(|_| unreachable!("a letter")),
        incarnation: u64::from(number),
    }
}

fn info(number: u8) -> NodeInfo {
    let endpoint = format!("tcp://10.0.0.{}:1", number % NODES);
    NodeInfo::new(
        node(number),
        NamespaceId::from_u128(1),
        64,
        String::new(),
        vec![endpoint],
    )
    .unwrap_or_else(|_| unreachable!("short texts"))
}

fn record(number: u8, epoch: u32, log_start: u64, rotated: bool) -> (String, Vec<u8>) {
    let record = NodeRecord {
        info: info(number),
        epoch,
        log_start,
        rotated,
    };
    (node(number).to_string(), record.encode().to_vec())
}

fn key(n: u64) -> BlockKey {
    BlockKey::from_u128(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 1 | 1)
}

fn location(n: u64) -> Location {
    Location {
        tier: if n.is_multiple_of(3) {
            Tier::Ssd
        } else {
            Tier::Host
        },
        slot: SlotId(n as u32),
        generation: Generation::FIRST,
    }
}

/// Adds a run of blocks, as part of the one chain `0..BLOCKS`.
fn add(batch: &mut Batch, first: u64, count: u64) {
    let numbers = first..(first + count).min(BLOCKS);
    let fingerprints: Vec<_> = numbers.clone().map(|n| key(n).fingerprint()).collect();
    let locations: Vec<_> = numbers.map(location).collect();
    let parent = first.checked_sub(1).map(|n| key(n).fingerprint());
    batch.add(parent, &fingerprints, &locations);
}

fn batch(program: &mut Program<'_>, removals: bool) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..program.below(4) {
        let (first, count) = (program.below(BLOCKS as u8).into(), program.below(9).into());
        if removals && program.below(3) == 0 {
            let gone: Vec<_> = (first..first + count)
                .map(|n| key(n).fingerprint())
                .collect();
            batch.remove(&gone);
        } else {
            add(&mut batch, first, count);
        }
    }
    batch
}

fn entry(program: &mut Program<'_>, sequence: u64) -> Entry {
    match program.below(8) {
        0..=1 => Entry::Checkpoint(batch(program, false)),
        2..=3 => Entry::CheckpointEnd,
        4..=6 => Entry::Delta(batch(program, true)),
        _ => Entry::Rotate(Rotate {
            next_epoch: program.below(8).into(),
            resume_after: sequence.saturating_add(program.below(4).into()),
        }),
    }
}

impl World {
    fn new() -> Self {
        let (writer, snapshot) = snapshot();
        let config = FollowerConfig {
            reload_max: Duration::from_secs(2),
            ..FollowerConfig::default()
        };
        Self {
            now: Duration::from_secs(1000),
            follower: Follower::new(config, info(0)),
            writer,
            snapshot,
            logs: BTreeMap::new(),
        }
    }

    fn step(&mut self, program: &mut Program<'_>) {
        match program.below(8) {
            0 => self.now += Duration::from_millis(50 * u64::from(program.byte())),
            1 => {
                let listed = program.byte();
                let mut members = Vec::new();
                for number in (0..6).filter(|number| listed & 1 << number != 0) {
                    let (epoch, start) = (program.below(8).into(), program.below(20).max(1).into());
                    members.push(record(number, epoch, start, program.below(2) == 1));
                }
                self.members(&members);
            }
            2 => {
                let logs: Vec<_> = self.logs.keys().cloned().collect();
                if let Some(log) = logs.get(usize::from(program.byte()) % logs.len().max(1)) {
                    self.logs.remove(log);
                }
            }
            3 => self.read(usize::from(program.byte())),
            4 => {
                let bytes: Vec<_> = (0..program.below(40)).map(|_| program.byte()).collect();
                self.append(program, |_, _| bytes);
            }
            _ => self.append(program, |program, place| {
                entry(program, place.sequence).encode(place).to_vec()
            }),
        }
        let cursors = self.follower.cursors();
        assert!(cursors.len() <= 6, "{cursors:?}");
        assert!(self.follower.peers().count() <= 6);
    }

    /// An entry at the end of a log, or a little beyond.
    fn append(
        &mut self,
        program: &mut Program<'_>,
        make: impl FnOnce(&mut Program<'_>, EntryPlace) -> Vec<u8>,
    ) {
        let (number, epoch) = (program.below(6), program.below(8));
        let entries = self.logs.entry(node(number).log(epoch.into())).or_default();
        let next = entries.last().map_or(0, |(last, _)| *last) + 1;
        let sequence = next + u64::from(program.below(16).saturating_sub(13));
        let place = EntryPlace {
            incarnation: node(number).incarnation,
            sequence,
        };
        entries.push((sequence, make(program, place)));
    }

    fn members(&mut self, members: &[(String, Vec<u8>)]) {
        let bytes = |(name, record): &(String, Vec<u8>)| (name.clone(), record.clone().into());
        let members: Vec<_> = members.iter().map(bytes).collect();
        self.follower.members(self.now, &members, &mut self.writer);
        self.writer.sweep(1024);
        self.follower.take_events();
    }

    /// Reads every log on, as a driver does.
    fn read(&mut self, limit: usize) {
        for (log, after) in self.follower.cursors() {
            let entries = self.logs.get(&log).into_iter().flatten();
            let news = entries.filter(|(sequence, _)| *sequence > after);
            let news: Vec<_> = news
                .take(limit)
                .map(|(sequence, bytes)| (*sequence, bytes.clone().into()))
                .collect();
            self.follower
                .entries(self.now, &log, &news, &mut self.writer);
        }
        self.writer.sweep(1024);
        self.follower.take_events();
    }

    /// Where the follower believes the blocks of a node to lie; nothing if it sees no such node.
    fn believed(&self, of: &NodeId) -> Option<Vec<Option<Location>>> {
        let mut peers = self.follower.peers();
        let (owner, _) = peers.find(|(_, record)| record.info.node() == of)?;
        let keys: Vec<_> = (0..BLOCKS).map(key).collect();
        let run = OwnerRun {
            owner,
            start: 0,
            len: keys.len(),
        };
        let mut locations = Vec::new();
        self.snapshot.locate(&keys, run, &mut locations);
        Some(locations)
    }

    /// From now on `b` behaves: it has a new log, which says that it holds some blocks.
    fn healthy(&mut self) -> Vec<Option<Location>> {
        let (node, epoch, start) = (node(1), 1000, 5000);
        let mut held = Batch::default();
        add(&mut held, 0, 7);
        let mut changes = Batch::default();
        add(&mut changes, 7, 10);
        changes.remove(&[key(3).fingerprint()]);
        let entries = [
            Entry::Checkpoint(held),
            Entry::CheckpointEnd,
            Entry::Delta(changes),
        ];
        let placed = (start..).zip(entries).map(|(sequence, entry)| {
            let place = EntryPlace {
                incarnation: node.incarnation,
                sequence,
            };
            (sequence, entry.encode(place).to_vec())
        });
        self.logs.insert(node.log(epoch), placed.collect());
        let held = |n| (n < 17 && n != 3).then(|| location(n));
        (0..BLOCKS).map(held).collect()
    }
}

fn run(data: &[u8]) {
    let mut world = World::new();
    let mut program = Program(data);
    while !program.0.is_empty() {
        world.step(&mut program);
    }
    // All nodes but one healthy one are gone, and so is what was known of them.
    let truth = world.healthy();
    // Not listed once, the healthy one is no longer taken for the earlier life of another.
    world.members(&[]);
    for _ in 0..ROUNDS {
        world.now += Duration::from_secs(1);
        world.members(&[record(1, 1000, 5000, false)]);
        world.read(64);
    }
    assert_eq!(world.believed(&node(1)), Some(truth.clone()));
    assert_eq!(world.follower.peers().count(), 1);
    while !world.writer.sweep(1024) {}
    let held = truth.iter().flatten().count();
    assert_eq!(
        world.writer.stats().replicas,
        held,
        "something was left behind"
    );
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        // A member with a log that is read: checkpoint, end, delta; then time, and it is gone.
        vec![
            1, 2, 1, 1, 0, 5, 1, 1, 0, 0, 1, 0, 4, 5, 1, 1, 0, 2, 5, 1, 1, 0, 4, 2, 3, 4, 1, 0, 2,
            5, 3, 64, 1, 0, 0, 200, 1, 0, 0, 200, 1, 0,
        ],
        // A log that vanishes, an entry with a gap, bytes that are no entry.
        vec![
            1, 6, 1, 1, 0, 1, 1, 0, 5, 1, 1, 0, 2, 3, 9, 2, 0, 5, 1, 1, 15, 4, 4, 3, 9, 9, 9, 1, 1,
        ],
        // Rotations.
        vec![
            1, 2, 1, 1, 0, 5, 1, 1, 0, 2, 5, 1, 1, 0, 7, 2, 2, 5, 1, 2, 0, 4, 3, 64, 1, 2, 2, 3, 1,
        ],
    ]
}
