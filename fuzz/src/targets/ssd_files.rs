//! What lies on SSD: whatever page or record is accepted, is written again as it was, and a journal
//! tells of no slot that there is not.
//!
//! Knows nothing of files.

use flexkv_block::{BlockKey, Checksum, Generation, NamespaceId};
use flexkv_ssd::format::{
    Geometry, Held, PAGE, RECORD_BYTES, Record, frame_page, journal_header, read_frame_page,
    read_journal, segment_epoch, segment_page,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "ssd_files",
    run,
    seeds,
};

const EPOCH: u64 = 0x5eed;
const SLOTS: u32 = 8;

/// Slots of one page each, four in a full segment.
fn geometry() -> Geometry {
    let segment = 5 * 2 * PAGE as u64;
    Geometry::new(NamespaceId::from_u128(77), PAGE, segment)
}

fn run(data: &[u8]) {
    page(data);
    journal(data, data);
    // No fuzzer guesses a checksum: behind it are the fields.
    let mut right = data.to_vec();
    for (number, record) in right.chunks_exact_mut(RECORD_BYTES).enumerate() {
        let seed = if number == 0 { 0 } else { EPOCH };
        put_right(record, 56, seed);
    }
    journal(&right, data);
    let mut right = data.to_vec();
    right.resize(PAGE, 0);
    put_right(&mut right, 56, 0);
    page(&right);
    put_right(&mut right, 96, 0);
    page(&right);
}

/// Gives the bytes before `at` the checksum that stands there.
fn put_right(bytes: &mut [u8], at: usize, seed: u64) {
    let sum = flexkv_ssd::format::sum(&bytes[..at], seed);
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn page(data: &[u8]) {
    let geometry = geometry();
    for slot in 0..SLOTS {
        if let Some(held) = read_frame_page(data, slot, &geometry, EPOCH) {
            assert_eq!(held.slot, slot);
            assert_eq!(data[..PAGE], frame_page(&held, &geometry, EPOCH));
        }
    }
    if let Some(epoch) = segment_epoch(data, &geometry, 1) {
        let pages = (0..=4).map(|slots| segment_page(&geometry, epoch, 1, slots));
        let known = pages.into_iter().any(|page| page == data[..PAGE]);
        let slots = data[44..48].first_chunk().copied().map(u32::from_le_bytes);
        assert!(known || slots > Some(4), "a page that nobody writes");
    }
}

/// `cut` is as long as the journal.
fn journal(bytes: &[u8], cut: &[u8]) {
    for record in bytes.as_chunks::<RECORD_BYTES>().0 {
        if let Some(read) = Record::decode(record, EPOCH) {
            assert_eq!(*record, read.encode(EPOCH));
        }
    }
    let Some(text) = read_journal(bytes, EPOCH, SLOTS) else {
        return;
    };
    let slots: Vec<u32> = text.held.iter().map(|held| held.slot).collect();
    assert!(slots.is_sorted_by(|a, b| a < b) && slots.iter().all(|slot| *slot < SLOTS));
    let whole = cut.len() - cut.len() % RECORD_BYTES;
    let again = read_journal(&bytes[..whole], EPOCH, SLOTS);
    assert_eq!(again, Some(text), "a last record cut short does not count");
}

fn seeds() -> Vec<Vec<u8>> {
    let held = |slot, parent: Option<u128>| Held {
        slot,
        generation: Generation::FIRST,
        key: BlockKey::from_u128(u128::from(slot) + 1),
        parent: parent.map(BlockKey::from_u128),
        checksum: Checksum::of(b"payload"),
    };
    let freed = |slot| Record::Freed {
        slot,
        generation: Generation::FIRST,
    };
    let records = [
        Record::Held(held(1, None)),
        Record::Held(held(2, Some(2))),
        freed(1),
        Record::Held(held(SLOTS, None)),
        Record::Closed,
    ];
    let mut journal = journal_header(EPOCH, [3; 16]).to_vec();
    for record in records {
        journal.extend_from_slice(&record.encode(EPOCH));
    }
    let open = journal[..journal.len() - RECORD_BYTES - 5].to_vec();
    let geometry = geometry();
    vec![
        journal,
        open,
        frame_page(&held(3, None), &geometry, EPOCH).to_vec(),
        frame_page(&held(7, Some(9)), &geometry, EPOCH).to_vec(),
        segment_page(&geometry, EPOCH, 1, 4),
    ]
}
