//! Entries: what comes back, what is refused and in which words, and how small they are.

use flexkv_block::{Checksum, Generation, SlotId, Tier};
use proptest::prelude::*;

use super::*;

const PLACE: EntryPlace = EntryPlace {
    incarnation: 0xabcd,
    sequence: 9,
};

fn at(tier: Tier, slot: u32, generation: u32) -> Location {
    Location {
        tier,
        slot: SlotId(slot),
        generation: Generation::new(generation).expect("a good generation"),
    }
}

fn batch_of(ops: &[Op<'_>]) -> Batch {
    let mut batch = Batch::default();
    for op in ops {
        match *op {
            Op::Add {
                parent,
                fingerprints,
                locations,
            } => batch.add(parent, fingerprints, locations),
            Op::Remove { fingerprints } => batch.remove(fingerprints),
        }
    }
    batch
}

fn some_batch() -> Batch {
    batch_of(&[
        Op::Add {
            parent: None,
            fingerprints: &[1, 2, 3],
            locations: &[
                at(Tier::Host, 5, 1),
                at(Tier::Host, 6, 1),
                at(Tier::Ssd, 6, 2),
            ],
        },
        Op::Remove { fingerprints: &[2] },
    ])
}

/// `body` in an entry whose checksum fits.
fn forged(head: [u8; 4], ops: u16, blocks: u16, body: &[u8]) -> Vec<u8> {
    let mut out = head.to_vec();
    out.extend_from_slice(&ops.to_le_bytes());
    out.extend_from_slice(&blocks.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(body);
    let sum = encode::checksum(PLACE, &out);
    out[8..16].copy_from_slice(&sum.to_le_bytes());
    out
}

#[test]
fn operations_in_a_row_become_one() {
    let here = [at(Tier::Host, 1, 1), at(Tier::Host, 2, 1)];
    let mut batch = Batch::default();
    batch.add(None, &[10, 11], &here);
    batch.add(Some(11), &[12], &here[..1]);
    batch.add(Some(11), &[13], &here[..1]);
    batch.add(None, &[14], &here[..1]);
    batch.remove(&[12]);
    batch.remove(&[11]);
    batch.add(Some(11), &[12], &here[..1]);
    let lengths: Vec<_> = batch
        .ops()
        .map(|op| match op {
            Op::Add {
                parent,
                fingerprints,
                ..
            } => (parent, fingerprints.to_vec()),
            Op::Remove { fingerprints } => (Some(0), fingerprints.to_vec()),
        })
        .collect();
    let expected = [
        (None, vec![10, 11, 12]),
        (Some(11), vec![13]),
        (None, vec![14]),
        (Some(0), vec![12, 11]),
        (Some(11), vec![12]),
    ];
    assert_eq!(lengths, expected);
}

#[test]
fn every_kind_reads_back() {
    let adds = batch_of(&[Op::Add {
        parent: Some(77),
        fingerprints: &[8, 9],
        locations: &[
            at(Tier::Host, u32::MAX, Generation::MAX),
            at(Tier::Ssd, 0, 1),
        ],
    }]);
    for entry in [
        Entry::Checkpoint(Batch::default()),
        Entry::Checkpoint(adds),
        Entry::CheckpointEnd,
        Entry::Delta(some_batch()),
        Entry::Rotate(Rotate {
            next_epoch: 4,
            resume_after: u64::MAX,
        }),
    ] {
        assert_eq!(Entry::decode(&entry.encode(PLACE), PLACE), Ok(entry));
    }
}

#[test]
fn a_sequential_store_costs_at_most_twelve_bytes_a_block() {
    let fingerprints: Vec<u64> = (0..MAX_ENTRY_BLOCKS as u64).collect();
    let bytes_a_block = |locations: Vec<Location>| {
        let mut batch = Batch::default();
        batch.add(Some(1), &fingerprints, &locations);
        let entry = Entry::Delta(batch).encode(PLACE);
        assert!(entry.len() <= MAX_ENTRY_BYTES);
        entry.len() as f64 / fingerprints.len() as f64
    };
    let slots = 0..MAX_ENTRY_BLOCKS as u32;
    let up = slots.clone().map(|slot| at(Tier::Host, 9 + slot, 3));
    assert!(bytes_a_block(up.collect()) < 8.1);
    let down = slots.clone().map(|slot| at(Tier::Host, 90_000 - slot, 3));
    assert!(bytes_a_block(down.collect()) < 8.1);
    let used_slots = slots.clone().map(|slot| at(Tier::Host, slot, 3 + slot % 3));
    assert!(bytes_a_block(used_slots.collect()) < 12.0);
    let scattered = slots.map(|slot| at(Tier::Ssd, slot.wrapping_mul(0x9e37_79b9), 3 + slot));
    assert!(bytes_a_block(scattered.collect()) < 16.0);
}

#[test]
fn an_entry_elsewhere_than_its_place_is_damaged() {
    let bytes = Entry::Delta(some_batch()).encode(PLACE);
    for (incarnation, sequence) in [(0xabcd, 10), (0xabce, 9)] {
        let place = EntryPlace {
            incarnation,
            sequence,
        };
        let error = Entry::decode(&bytes, place).expect_err("misplaced");
        assert!(
            error.to_string().contains("damaged or misplaced"),
            "{error}"
        );
    }
}

#[test]
fn a_malformed_entry_is_named() {
    let check = |bytes: &[u8], words: &str| {
        let error = Entry::decode(bytes, PLACE).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let good = Entry::Delta(some_batch()).encode(PLACE);
    for at in 2..good.len() {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x10;
        check(&bytes, "damaged");
        check(
            &good[..at],
            if at < 16 {
                "ends within its"
            } else {
                "damaged"
            },
        );
    }
    check(b"", "ends within its header");
    check(b"PUT x", "not a log entry (magic 0x50)");
    check(&forged([MAGIC, 2, 3, 0], 0, 0, &[]), "version 2");
    check(&forged([MAGIC, 1, 9, 0], 0, 0, &[]), "unknown kind 9");
    check(&forged([MAGIC, 1, 3, 1], 0, 0, &[]), "reserved");
    check(&forged([MAGIC, 1, 3, 0], 0, 0, &[1]), "1 bytes after");
    check(
        &forged([MAGIC, 1, 4, 0], 0, 0, &[1; 11]),
        "ends within the place to resume",
    );
    check(
        &forged([MAGIC, 1, 2, 0], 1, 0, &[]),
        "says 1 operations and blocks but has 0",
    );
    check(&forged([MAGIC, 1, 3, 0], 1, 1, &[7, 1]), "operation 7");
    check(
        &forged([MAGIC, 1, 1, 0], 1, 1, &[3, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        "operation 3",
    );
    check(&forged([MAGIC, 1, 3, 0], 1, 0, &[3, 0]), "on no blocks");
    check(
        &forged([MAGIC, 1, 3, 0], 1, 2, &[3, 3]),
        "says 2 blocks but has 3",
    );
    check(
        &forged([MAGIC, 1, 3, 0], 0, 2, &[]),
        "says 2 blocks but has 0",
    );
    check(
        &forged([MAGIC, 1, 3, 0], 0, 4097, &[]),
        "4097 blocks is over the limit",
    );
    check(
        &forged([MAGIC, 1, 3, 0], 1, 4096, &[3, 0x80, 0x20]),
        "ends within fingerprints",
    );
    check(
        &forged([MAGIC, 1, 3, 0], 0, 0, &vec![0; MAX_ENTRY_BYTES]),
        "over the limit",
    );
    check(
        &forged([MAGIC, 1, 3, 0], 1, 1, &[3, 255, 255, 255, 255, 255]),
        "operation's length",
    );
    let add = |location: &[u8]| {
        let body = [&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], location].concat();
        forged([MAGIC, 1, 3, 0], 1, 1, &body)
    };
    assert!(Entry::decode(&add(&[1, 0, 2]), PLACE).is_ok());
    check(&add(&[3, 0, 2]), "location (tier)");
    check(&add(&[9, 0, 2]), "location (span)");
    check(&add(&[1, 1, 2]), "location (slot)");
    check(&add(&[1, 0, 0]), "location (generation)");
    check(&add(&[1, 0]), "ends within a generation");
}

#[derive(Clone, Debug)]
enum AnyOp {
    Add(Option<u64>, Vec<(u64, u64)>),
    Remove(Vec<u64>),
}

fn any_location_word() -> impl Strategy<Value = u64> {
    (
        1u64..3,
        1..=u64::from(Generation::MAX),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(|(tier, generation, slot, near)| {
            let (generation, slot) = if near {
                (1 + generation % 2, slot % 8)
            } else {
                (generation, slot)
            };
            tier << 60 | generation << 32 | u64::from(slot)
        })
}

fn any_op() -> impl Strategy<Value = AnyOp> {
    let blocks = prop::collection::vec((0u64..50, any_location_word()), 1..20);
    prop_oneof![
        (prop::option::of(0u64..50), blocks)
            .prop_map(|(parent, blocks)| AnyOp::Add(parent, blocks)),
        prop::collection::vec(any::<u64>(), 1..20).prop_map(AnyOp::Remove),
    ]
}

proptest! {
    #[test]
    fn any_batch_reads_back(ops in prop::collection::vec(any_op(), 0..20)) {
        let mut batch = Batch::default();
        for op in &ops {
            match op {
                AnyOp::Add(parent, blocks) => {
                    let fingerprints: Vec<_> = blocks.iter().map(|(fp, _)| *fp).collect();
                    let locations: Vec<_> = blocks
                        .iter()
                        .map(|(_, word)| Location::from_word(*word).expect("a good word"))
                        .collect();
                    batch.add(*parent, &fingerprints, &locations);
                }
                AnyOp::Remove(fingerprints) => batch.remove(fingerprints),
            }
        }
        let entry = Entry::Delta(batch);
        prop_assert_eq!(Entry::decode(&entry.encode(PLACE), PLACE), Ok(entry));
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        kind in 0u8..6,
        ops in 0u16..5,
        blocks in 0u16..50,
        body in prop::collection::vec(prop_oneof![0u8..20, any::<u8>()], 0..200),
    ) {
        let _ = Entry::decode(&body, PLACE);
        let bytes = forged([MAGIC, 1, kind, 0], ops, blocks, &body);
        if let Ok(entry) = Entry::decode(&bytes, PLACE) {
            prop_assert_eq!(Entry::decode(&entry.encode(PLACE), PLACE), Ok(entry));
        }
    }
}

#[test]
fn the_checksum_is_as_documented() {
    let bytes = Entry::CheckpointEnd.encode(PLACE);
    let mut covered = PLACE.incarnation.to_le_bytes().to_vec();
    covered.extend_from_slice(&PLACE.sequence.to_le_bytes());
    covered.extend_from_slice(&bytes[..8]);
    assert_eq!(bytes[8..16], Checksum::of(&covered).0.to_le_bytes());
    assert_eq!(bytes[..8], [0xf7, 1, 2, 0, 0, 0, 0, 0]);
}
