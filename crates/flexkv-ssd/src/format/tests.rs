//! Every byte counts: what was encoded is read back, and nothing else is.

use super::*;

fn geometry() -> Geometry {
    Geometry::new(NamespaceId::from_u128(0xabcd), 6000, 1 << 20)
}

fn held(parent: Option<u128>) -> Held {
    Held {
        slot: 77,
        generation: Generation::new(5).expect("valid"),
        key: BlockKey::from_u128(0x1234_5678),
        parent: parent.map(BlockKey::from_u128),
        checksum: Checksum(99),
    }
}

/// Calls `reads` with `bytes` as they are, then with every single bit flipped.
fn only_as_it_is(bytes: &[u8], reads: impl Fn(&[u8]) -> bool) {
    assert!(reads(bytes), "as it was written");
    let mut copy = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(!reads(&copy), "bit {bit} is flipped");
        copy[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn frame_pages_read_back_and_every_bit_of_them_counts() {
    let geometry = geometry();
    for parent in [None, Some(0), Some(8)] {
        let page = frame_page(&held(parent), &geometry, 11);
        let read = |bytes: &[u8]| read_frame_page(bytes, 77, &geometry, 11);
        assert_eq!(read(&page), Some(held(parent)));
        only_as_it_is(&page[..128], |start| {
            let mut page = page;
            page[..128].copy_from_slice(start);
            read(&page).is_some()
        });
        assert_eq!(read(&page[..PAGE - 1]), None, "cut off");
        assert_eq!(read_frame_page(&page, 78, &geometry, 11), None, "slot");
        assert_eq!(read_frame_page(&page, 77, &geometry, 12), None, "epoch");
    }
}

#[test]
fn segment_pages_tell_their_epoch_to_their_own_geometry() {
    let geometry = geometry();
    let page = segment_page(&geometry, 42, 3, 9);
    assert_eq!(segment_epoch(&page, &geometry, 3), Some(42));
    assert_eq!(segment_epoch(&page, &geometry, 4), None, "another number");
    let others = [
        Geometry::new(NamespaceId::from_u128(1), 6000, 1 << 20),
        Geometry::new(NamespaceId::from_u128(0xabcd), 6001, 1 << 20),
        Geometry::new(NamespaceId::from_u128(0xabcd), 6000, 1 << 21),
    ];
    for other in others {
        assert_eq!(segment_epoch(&page, &other, 3), None, "{other:?}");
    }
    only_as_it_is(&page, |page| segment_epoch(page, &geometry, 3).is_some());
}

#[test]
fn records_read_back_and_every_bit_of_them_counts() {
    let freed = Record::Freed {
        slot: 9,
        generation: Generation::FIRST,
    };
    let records = [
        Record::Held(held(None)),
        Record::Held(held(Some(3))),
        freed,
        Record::Closed,
    ];
    for record in records {
        let bytes = record.encode(4);
        assert_eq!(Record::decode(&bytes, 4), Some(record));
        assert_eq!(Record::decode(&bytes, 5), None, "another epoch");
        only_as_it_is(&bytes, |bytes| {
            let bytes = bytes.try_into().expect("as long as a record");
            Record::decode(bytes, 4).is_some()
        });
    }
    assert_eq!(Record::decode(&[0; RECORD_BYTES], 0), None, "zeros");
}

#[test]
fn journal_headers_read_back_and_every_bit_of_them_counts() {
    let header = journal_header(6, [3; 16]);
    assert_eq!(read_journal_header(&header), Some((6, [3; 16])));
    only_as_it_is(&header, |header| read_journal_header(header).is_some());
}

#[test]
fn slots_lie_one_after_the_other_in_segments_of_the_size_asked_for() {
    let geometry = geometry();
    assert_eq!(geometry.stride(), 4096 + 8192);
    assert_eq!(geometry.per_segment, 85);
    assert!(geometry.segment_bytes(85) <= 1 << 20);
    assert_eq!(geometry.place(0), (0, 4096));
    assert_eq!(geometry.place(84), (0, 4096 + 84 * 12288));
    assert_eq!(geometry.place(85), (1, 4096));
    let tiny = Geometry::new(NamespaceId::from_u128(1), 6000, 1);
    assert_eq!(tiny.per_segment, 1, "a segment has one slot at least");
}

/// The bytes are a format: they may change with the version only.
#[test]
fn the_bytes_are_those_of_version_1() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let record = Record::Held(held(Some(3))).encode(4);
    assert_eq!(
        hex(&record[..56]),
        concat!(
            "0100",
            "0100",
            "4d000000",
            "05000000",
            "00000000",
            "78563412000000000000000000000000",
            "03000000000000000000000000000000",
            "6300000000000000",
        )
    );
    let page = segment_page(&geometry(), 42, 3, 9);
    assert_eq!(
        hex(&page[..56]),
        concat!(
            "464b5653",
            "0100",
            "0000",
            "2a00000000000000",
            "cdab0000000000000000000000000000",
            "7017000000000000",
            "03000000",
            "09000000",
            "55000000",
            "00000000",
        )
    );
}
