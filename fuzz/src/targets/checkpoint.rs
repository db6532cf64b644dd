//! Checkpoints: whatever a node holds, its publisher writes a log that makes a follower believe exactly
//! that; and a checkpoint of any operations is applied without harm.
//!
//! Knows nothing of stores.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_index::log::{Batch, Entry, EntryPlace, Op};
use flexkv_index::{
    Follower, FollowerConfig, NodeId, NodeInfo, OwnerRun, PublishAction, PublishOutcome, Publisher,
    PublisherConfig, Residency, Snapshot, snapshot,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "checkpoint",
    run,
    seeds,
};

const PLACE: EntryPlace = EntryPlace {
    incarnation: 7,
    sequence: 3,
};
/// Blocks beyond so many show nothing new.
const MAX_BLOCKS: usize = 2000;
/// Actions beyond so many mean that the publisher turns in circles.
const MAX_ACTIONS: usize = 100;

fn run(data: &[u8]) {
    written_and_read(data);
    applied(data);
}

/// Each byte is one more block: after which of the last ones, and where it lies.
fn held(data: &[u8]) -> (Residency, Vec<BlockKey>) {
    let (mut held, mut keys) = (Residency::default(), Vec::new());
    for (i, byte) in data.iter().take(MAX_BLOCKS).enumerate() {
        let key =
            BlockKey::from_u128((i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060));
        let back = usize::from(byte & 7);
        let parent = keys.len().checked_sub(1 + back).map(|at| keys[at]);
        let tier = if byte & 8 == 0 { Tier::Host } else { Tier::Ssd };
        let slot = SlotId(i as u32 ^ u32::from(byte >> 4));
        let generation = Generation::FIRST;
        held.insert(
            key,
            parent,
            Location {
                tier,
                slot,
                generation,
            },
        );
        keys.push(key);
    }
    (held, keys)
}

fn info(name: &str, incarnation: u64) -> NodeInfo {
    let node = NodeId {
        name: name.parse().unwrap_or_else(|_| unreachable!("a letter")),
        incarnation,
    };
    NodeInfo::new(
        node,
        NamespaceId::from_u128(1),
        64,
        String::new(),
        Vec::new(),
    )
    .unwrap_or_else(|_| unreachable!("no texts"))
}

fn written_and_read(data: &[u8]) {
    let (held, keys) = held(data);
    let (mut writer, reader) = snapshot();
    let mut follower = Follower::new(FollowerConfig::default(), info("b", 2));
    let mut publisher = Publisher::new(PublisherConfig::default(), info("a", 1));
    let now = Duration::from_secs(1);
    for _ in 0..MAX_ACTIONS {
        let Some(action) = publisher.poll(now, &held) else {
            break;
        };
        let outcome = match action {
            PublishAction::Append { log, entries, .. } => {
                follower.entries(now, &log, &entries, &mut writer);
                PublishOutcome::Done
            }
            PublishAction::Renew { name, record, .. } => {
                // Whoever sees the record reads the log from its start: the first entry is empty.
                follower.members(now, &[(name, record)], &mut writer);
                let log = info("a", 1).node().log(1);
                let empty = Entry::Checkpoint(Batch::default()).encode(EntryPlace {
                    incarnation: 1,
                    sequence: 1,
                });
                follower.entries(now, &log, &[(1, empty)], &mut writer);
                PublishOutcome::Renewed {
                    lease_kept: true,
                    log_kept: true,
                }
            }
            PublishAction::Retire { .. } => PublishOutcome::Done,
        };
        publisher.handle(now, outcome);
    }
    assert!(publisher.is_settled(), "the publisher turns in circles");
    let owner = follower.peers().next().map(|(owner, _)| owner);
    let owner = owner.unwrap_or_else(|| panic!("the checkpoint was not believed"));
    for (i, key) in keys.iter().enumerate() {
        let believed = locate(&reader, &chain(&held, *key), owner);
        assert_eq!(believed, held.get(*key), "block {i}");
    }
    assert_eq!(writer.stats().replicas, keys.len());
}

/// The blocks up to `key`, from the first of its prompt on.
fn chain(held: &Residency, key: BlockKey) -> Vec<BlockKey> {
    let mut chain: Vec<_> = std::iter::successors(Some(key), |key| held.parent(*key)).collect();
    chain.reverse();
    chain
}

fn locate(reader: &Snapshot, keys: &[BlockKey], owner: flexkv_index::OwnerId) -> Option<Location> {
    let run = OwnerRun {
        owner,
        start: keys.len() - 1,
        len: 1,
    };
    let mut found = Vec::new();
    reader.locate(keys, run, &mut found);
    found[0]
}

/// The bytes are the body of a checkpoint entry, sealed as an owner would.
fn applied(data: &[u8]) {
    let mut entry = vec![0xF7, 1, 1, 0];
    entry.extend_from_slice(data);
    if entry.len() < 16 {
        return;
    }
    let mut sum = Checksum::stream();
    sum.update(&PLACE.incarnation.to_le_bytes());
    sum.update(&PLACE.sequence.to_le_bytes());
    sum.update(&entry[..8]);
    sum.update(&entry[16..]);
    entry[8..16].copy_from_slice(&sum.finish().0.to_le_bytes());
    let Ok(Entry::Checkpoint(batch)) = Entry::decode(&entry, PLACE) else {
        return;
    };
    let (mut writer, _reader) = snapshot();
    let owner = writer.add_owner();
    let owner = owner.unwrap_or_else(|| unreachable!("a new snapshot has room"));
    for op in batch.ops() {
        let Op::Add {
            parent,
            fingerprints,
            locations,
        } = op
        else {
            panic!("a checkpoint that removes");
        };
        writer.add_run(owner, parent, fingerprints, locations);
    }
    assert!(writer.stats().replicas <= batch.blocks());
    writer.remove_owner(owner);
    while !writer.sweep(1024) {}
    assert_eq!(writer.stats().replicas, 0, "something was left behind");
}

fn seeds() -> Vec<Vec<u8>> {
    let mut body = vec![2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&[1, 2]);
    body.extend_from_slice(&[7; 16]);
    body.extend_from_slice(&[9, 2, 2, 2, 1]);
    body.extend_from_slice(&[8; 16]);
    body.extend_from_slice(&[1, 2, 0]);
    vec![vec![0; 100], (0..=255).collect(), vec![0x10; 40], body]
}
