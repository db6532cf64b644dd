//! Entries of a node's log: what is accepted says the same when it is written and read again, and
//! nothing in another place of the log.
//!
//! Knows nothing of where logs are kept.

use flexkv_block::{Checksum, Generation, Location, SlotId, Tier};
use flexkv_index::log::{Batch, Entry, EntryError, EntryPlace, Rotate};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "delta_log",
    run,
    seeds,
};

const PLACE: EntryPlace = EntryPlace {
    incarnation: 0x1234_5678,
    sequence: 9,
};

fn run(data: &[u8]) {
    check(data);
    // No fuzzer guesses a checksum: behind it is the body.
    if data.len() >= 16 {
        let mut sum = Checksum::stream();
        sum.update(&PLACE.incarnation.to_le_bytes());
        sum.update(&PLACE.sequence.to_le_bytes());
        sum.update(&data[..8]);
        sum.update(&data[16..]);
        let mut sealed = data.to_vec();
        sealed[8..16].copy_from_slice(&sum.finish().0.to_le_bytes());
        check(&sealed);
    }
}

fn check(bytes: &[u8]) {
    match Entry::decode(bytes, PLACE) {
        Ok(entry) => {
            let again = entry.encode(PLACE);
            assert_eq!(Entry::decode(&again, PLACE), Ok(entry));
            let elsewhere = EntryPlace {
                sequence: 10,
                ..PLACE
            };
            let misplaced = Entry::decode(&again, elsewhere);
            assert!(matches!(misplaced, Err(EntryError::Damaged { .. })));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let location = |slot| Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    };
    let mut batch = Batch::default();
    batch.add(None, &[1, 2, 3], &[7, 8, 9].map(location));
    batch.add(Some(40), &[41, 42, 43], &[100, 99, 5].map(location));
    let checkpoint = Entry::Checkpoint(batch.clone());
    batch.remove(&[2, 41]);
    let rotate = Entry::Rotate(Rotate {
        next_epoch: 2,
        resume_after: 30,
    });
    let entries = [
        checkpoint,
        Entry::CheckpointEnd,
        Entry::Delta(batch),
        rotate,
    ];
    entries.map(|entry| entry.encode(PLACE).to_vec()).to_vec()
}
