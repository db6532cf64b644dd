//! The documented offsets, and that a header is believed only if all of it fits together.

use super::*;
use crate::{Generation, Tier};

fn layout(slots: u32, block_bytes: u64) -> ArenaLayout {
    let namespace = NamespaceId::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
    ArenaLayout::new(
        0x0102_0304_0506_0708,
        namespace,
        slots,
        block_bytes,
        u64::MAX,
    )
    .expect("a valid layout")
}

#[test]
fn parts_lie_where_the_table_says() {
    for (slots, block_bytes, payload, stride, file_bytes) in [
        (1, 1, 8192, 64, 12_288),
        (3, 100, 8192, 128, 12_288),
        (64, 64, 8192, 64, 12_288),
        (65, 4095, 12_288, 4096, 12_288 + 65 * 4096),
        (2, 4096, 8192, 4096, 16_384),
        (2, 5000, 8192, 8192, 24_576),
    ] {
        let layout = layout(slots, block_bytes);
        let case = format!("{slots} slots of {block_bytes}");
        assert_eq!(layout.payload_offset(SlotId(0)), Some(payload), "{case}");
        let last = payload + stride * (slots as usize - 1);
        assert_eq!(
            layout.payload_offset(SlotId(slots - 1)),
            Some(last),
            "{case}"
        );
        assert_eq!(layout.payload_offset(SlotId(slots)), None, "{case}");
        assert_eq!(layout.file_bytes(), file_bytes, "{case}");
        let descriptor = layout.descriptor_offset(SlotId(slots - 1));
        assert_eq!(descriptor, Some(4096 + 64 * (slots as usize - 1)), "{case}");
        assert_eq!(layout.descriptor_offset(SlotId(slots)), None, "{case}");
    }
}

#[test]
fn a_header_has_the_documented_bytes() {
    let header = layout(2, 5000).encode();
    assert_eq!(&header[..8], b"FKVA\x01\0\0\0");
    assert_eq!(header[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(header[16..20], [0, 0xff, 0xee, 0xdd]);
    assert_eq!(header[32..40], 5000u64.to_le_bytes());
    assert_eq!(header[40..48], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(header[48..56], 8192u64.to_le_bytes());
    assert_eq!(header[56..64], 8192u64.to_le_bytes());
    assert_eq!(header[64..72], 24_576u64.to_le_bytes());
    assert_eq!(header[72..], Checksum::of(&header[..72]).0.to_le_bytes());
}

#[test]
fn a_header_reads_back_and_every_bit_counts() {
    let layout = layout(7, 4097);
    let good = layout.encode();
    let file_bytes = layout.file_bytes;
    assert_eq!(ArenaLayout::decode(&good, file_bytes), Ok(layout));
    for bit in 0..8 * ARENA_HEADER_BYTES {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(ArenaLayout::decode(&bad, file_bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn a_header_with_a_right_checksum_must_still_be_possible() {
    for (at, value) in [
        (48, 1u64),
        (56, 4096),
        (64, 1 << 40),
        (32, 0),
        (32, u64::MAX),
    ] {
        let mut header = layout(7, 4097).encode();
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let sum = Checksum::of(&header[..COVERED]);
        header[COVERED..].copy_from_slice(&sum.0.to_le_bytes());
        let decoded = ArenaLayout::decode(&header, u64::MAX);
        assert_eq!(decoded, Err(ArenaError::Damaged), "{value} at {at}");
    }
}

#[test]
fn foreign_headers_are_named() {
    let layout = layout(1, 1);
    let mut header = layout.encode();
    let short = ArenaLayout::decode(&header, 8192).expect_err("too short");
    assert_eq!(
        short.to_string(),
        "the arena has 8192 bytes where its header says 12288"
    );
    header[4] = 2;
    let version = ArenaLayout::decode(&header, 12_288).expect_err("version 2");
    assert_eq!(
        version.to_string(),
        "arena version 2 is not readable here (this build reads 1)"
    );
    header[..4].copy_from_slice(b"\x7fELF");
    let magic = ArenaLayout::decode(&header, 12_288).expect_err("an executable");
    assert_eq!(magic.to_string(), "not an arena (magic [7f, 45, 4c, 46])");
}

#[test]
fn impossible_sizes_are_named() {
    let namespace = NamespaceId::from_u128(0);
    let error = |slots, block_bytes, memory| {
        let layout = ArenaLayout::new(0, namespace, slots, block_bytes, memory);
        layout.expect_err("not possible").to_string()
    };
    assert_eq!(
        error(0, 64, u64::MAX),
        "an arena must have at least one slot"
    );
    assert_eq!(
        error(1, 0, u64::MAX),
        "an arena cannot have blocks of 0 bytes (1 to 1073741824 are possible)"
    );
    assert!(error(1, (1 << 30) + 1, u64::MAX).contains("1073741825 bytes"));
    assert_eq!(
        error(2, 4096, 16_383),
        "an arena of 2 slots of 4096 bytes does not fit into this machine's 16383 bytes of memory"
    );
    let largest = ArenaLayout::new(0, namespace, u32::MAX, 1 << 30, u64::MAX);
    assert!(largest.is_ok(), "no overflow");
}

#[test]
fn a_descriptor_has_the_documented_bytes_and_reads_back() {
    let location = Location {
        tier: Tier::Host,
        slot: SlotId(7),
        generation: Generation::new(0x0abc_def0).expect("in range"),
    };
    let descriptor = Descriptor {
        location,
        key: BlockKey::from_bytes(*b"0123456789abcdef"),
        checksum: Checksum(0x1122_3344_5566_7788),
    };
    let mut bytes = [0; DESCRIPTOR_BYTES];
    bytes[..8].copy_from_slice(&[7, 0, 0, 0, 0xf0, 0xde, 0xbc, 0x1a]);
    bytes[8..24].copy_from_slice(b"0123456789abcdef");
    bytes[24..32].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    assert_eq!(Descriptor::from_bytes(&bytes, SlotId(7)), Some(descriptor));
    assert_eq!(
        Descriptor::from_words(descriptor.to_words(), SlotId(7)),
        Some(descriptor)
    );
    assert_eq!(
        Descriptor::from_bytes(&bytes, SlotId(8)),
        None,
        "another slot"
    );
    bytes[..8].fill(0);
    assert_eq!(Descriptor::from_bytes(&bytes, SlotId(7)), None, "no block");
}
