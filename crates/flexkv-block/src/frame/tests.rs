//! Headers round-trip; every damaged bit and every foreign header is refused by name.

use proptest::prelude::*;

use super::*;
use crate::{Generation, SlotId, Tier};

fn header() -> FrameHeader {
    FrameHeader {
        key: BlockKey::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
        location: Location {
            tier: Tier::Host,
            slot: SlotId(9),
            generation: Generation::FIRST,
        },
        length: 4096,
        checksum: Checksum::of(b"payload"),
    }
}

#[test]
fn every_single_bit_flip_is_refused() {
    let good = header().encode();
    for bit in 0..8 * FRAME_HEADER_BYTES {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(FrameHeader::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn foreign_headers_are_named() {
    let good = header().encode();
    assert_eq!(
        FrameHeader::decode(&good[..63]),
        Err(FrameError::Truncated { bytes: 63 })
    );
    let mut bad = good;
    bad[..4].copy_from_slice(b"HTTP");
    assert_eq!(
        FrameHeader::decode(&bad),
        Err(FrameError::Magic { found: *b"HTTP" })
    );
    let mut bad = good;
    bad[4] = 9;
    let error = FrameHeader::decode(&bad).expect_err("version 9");
    assert_eq!(
        error.to_string(),
        "block frame version 9 is not readable here (this build reads 1)"
    );
}

#[test]
fn well_summed_nonsense_is_refused() {
    let resum = |edit: fn(&mut [u8; FRAME_HEADER_BYTES])| {
        let mut bytes = header().encode();
        edit(&mut bytes);
        let sum = XxHash3_64::oneshot(&bytes[..COVERED]);
        bytes[COVERED..].copy_from_slice(&sum.to_le_bytes());
        FrameHeader::decode(&bytes)
    };
    assert_eq!(resum(|b| b[50] = 1), Err(FrameError::Reserved));
    assert_eq!(
        resum(|b| b[24..32].fill(0)),
        Err(FrameError::Location { word: 0 })
    );
    assert_eq!(
        resum(|b| b[32..36].fill(0xff)),
        Err(FrameError::Length { length: u32::MAX })
    );
}

proptest! {
    #[test]
    fn a_checksum_does_not_depend_on_the_pieces(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        cut in 0usize..3000,
    ) {
        let cut = cut.min(bytes.len());
        let mut stream = Checksum::stream();
        stream.update(&bytes[..cut]);
        stream.update(&bytes[cut..]);
        prop_assert_eq!(stream.finish(), Checksum::of(&bytes));
    }

    #[test]
    fn headers_round_trip(key: u128, slot: u32, generation in 1..Generation::MAX, length in 0..(1u32 << 30), sum: u64) {
        let generation = Generation::new(generation).expect("in range");
        let header = FrameHeader {
            key: BlockKey::from_u128(key),
            location: Location { tier: Tier::Ssd, slot: SlotId(slot), generation },
            length,
            checksum: Checksum(sum),
        };
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = FrameHeader::decode(&bytes);
    }
}
