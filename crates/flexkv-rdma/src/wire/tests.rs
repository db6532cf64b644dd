//! The documented bytes, and that no answer of an owner leads outside of its arena.

use flexkv_block::NamespaceId;

use super::*;

fn layout() -> ArenaLayout {
    ArenaLayout::new(1, NamespaceId::from_u128(2), 5, 4096, u64::MAX).expect("a layout")
}

fn introduction() -> Introduction {
    Introduction {
        queue: QueueAddress {
            port: PortAddress {
                link: Link::Ethernet,
                lid: 0x0102,
                gid: *b"0123456789abcdef",
                mtu: 5,
            },
            number: 0x0a_0b0c,
            first_packet: 0x01_0203,
        },
        reads: 16,
    }
}

/// Three chunks of the arena: header, descriptors and a slot; two slots; two slots.
fn chunks() -> Vec<Chunk> {
    let whole = layout().file_bytes() as u64;
    let sizes = [8192 + 4096, 8192, whole - 5 * 4096];
    let mut address = 0x7000_0000;
    let chunk = |(number, bytes)| {
        address += 1 << 20;
        Chunk {
            address,
            bytes,
            key: 100 + number,
        }
    };
    (0u32..).zip(sizes).map(chunk).collect()
}

fn answer(chunks: &[Chunk]) -> Result<OwnersArena, WireError> {
    let bytes = encode_answer(&introduction(), &layout(), chunks);
    let answer = Answer::decode(bytes.first_chunk().expect("a head"))?;
    assert_eq!(answer.follows(), bytes.len() - ANSWER_BYTES);
    answer.arena(&bytes[ANSWER_BYTES..])
}

#[test]
fn an_introduction_has_the_documented_bytes() {
    let bytes = introduction().encode(Side::Reader);
    assert_eq!(&bytes[..4], b"FKRO");
    assert_eq!(bytes[4..8], [0x0c, 0x0b, 0x0a, 0]);
    assert_eq!(bytes[8..16], [3, 2, 1, 0, 2, 1, 5, 2]);
    assert_eq!(&bytes[16..32], b"0123456789abcdef");
    assert_eq!(bytes[32..], [16, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        Introduction::decode(&bytes, Side::Reader),
        Ok(introduction())
    );
}

#[test]
fn impossible_introductions_are_named() {
    let good = introduction().encode(Side::Reader);
    for (at, value, text) in [
        (0, b'X', "no introduction (it begins with [58, 4b, 52, 4f])"),
        (
            7,
            1,
            "the other side's introduction has the impossible queue pair 17435404",
        ),
        (
            11,
            1,
            "the other side's introduction has the impossible first packet 16843267",
        ),
        (
            14,
            6,
            "the other side's introduction has the impossible packet size 6",
        ),
        (
            14,
            0,
            "the other side's introduction has the impossible packet size 0",
        ),
        (
            15,
            3,
            "the other side's introduction has the impossible link 3",
        ),
        (
            32,
            0,
            "the other side's introduction has the impossible number of reads 0",
        ),
    ] {
        let mut bad = good;
        bad[at] = value;
        let error = Introduction::decode(&bad, Side::Reader).expect_err(text);
        assert_eq!(error.to_string(), text);
    }
    assert!(
        Introduction::decode(&good, Side::Owner).is_err(),
        "the other side's"
    );
}

#[test]
fn an_answer_tells_where_everything_lies() {
    let arena = answer(&chunks()).expect("a good answer");
    assert_eq!(arena.layout, layout());
    let address = |number: u64| 0x7000_0000 + (number << 20);
    assert_eq!(arena.find(0, 64), Some((address(1), 100)));
    assert_eq!(
        arena.descriptors(SlotId(3), 2),
        Some((address(1) + 4096 + 3 * 64, 100))
    );
    assert_eq!(arena.descriptors(SlotId(5), 1), None, "no such slot");
    let slot = |slot| arena.layout.payload_offset(SlotId(slot)).expect("a slot");
    assert_eq!(arena.find(slot(0), 4096), Some((address(1) + 8192, 100)));
    assert_eq!(arena.find(slot(2), 4096), Some((address(2) + 4096, 101)));
    assert_eq!(arena.find(slot(4), 4096), Some((address(3) + 4096, 102)));
    assert_eq!(arena.find(slot(0), 4097), None, "over the end of a chunk");
    assert_eq!(arena.find(slot(4), 4097), None, "over the end of the arena");
    assert_eq!(arena.find(layout().file_bytes(), 1), None);
}

#[test]
fn answers_that_lead_elsewhere_are_refused() {
    let with = |change: fn(&mut Vec<Chunk>)| {
        let mut bad = chunks();
        change(&mut bad);
        answer(&bad).map(|_| ()).expect_err("refused")
    };
    with(|chunks| chunks[2].bytes -= 1);
    with(|chunks| chunks[2].bytes += 1);
    with(|chunks| chunks[1].bytes = 0);
    with(|chunks| chunks[1].bytes = u64::MAX);
    with(|chunks| chunks[1].address = u64::MAX - 100);
    with(|chunks| chunks.clear());
    with(|chunks| {
        chunks[0].bytes -= 64;
        chunks[1].bytes += 64;
    });
    with(|chunks| {
        chunks[1].bytes -= 8;
        chunks[2].bytes += 8;
    });
    with(|chunks| {
        chunks[0].bytes -= 4096 + 64;
        chunks[1].bytes += 4096 + 64;
    });
}

#[test]
fn every_bit_of_an_arenas_header_counts() {
    let good = encode_answer(&introduction(), &layout(), &chunks());
    for bit in 0..8 * ARENA_HEADER_BYTES {
        let mut bad = good.clone();
        bad[OFFER_BYTES + bit / 8] ^= 1 << (bit % 8);
        let answer =
            Answer::decode(bad.first_chunk().expect("a head")).expect("the same introduction");
        assert!(answer.arena(&bad[ANSWER_BYTES..]).is_err(), "bit {bit}");
    }
}
