//! The header of a block frame: whatever is accepted, is written again as it was.
//!
//! Knows nothing of who sends frames.

use flexkv_block::{
    BlockKey, Checksum, FRAME_HEADER_BYTES, FrameHeader, Generation, Location, SlotId, Tier,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "block_frame",
    run,
    seeds,
};

fn run(data: &[u8]) {
    check(data);
    // No fuzzer guesses a checksum: behind it are the fields.
    if let Some(header) = data.first_chunk::<FRAME_HEADER_BYTES>() {
        let mut header = *header;
        let sum = Checksum::of(&header[..56]);
        header[56..].copy_from_slice(&sum.0.to_le_bytes());
        check(&header);
    }
}

fn check(bytes: &[u8]) {
    match FrameHeader::decode(bytes) {
        Ok(header) => assert_eq!(header.encode(), bytes[..FRAME_HEADER_BYTES]),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let header = |tier, slot| FrameHeader {
        key: BlockKey::from_u128(0x0123_4567_89ab_cdef),
        location: Location {
            tier,
            slot: SlotId(slot),
            generation: Generation::FIRST,
        },
        length: 4096,
        checksum: Checksum::of(b"payload"),
    };
    let headers = [header(Tier::Host, 0), header(Tier::Ssd, u32::MAX)];
    headers.map(|header| header.encode().to_vec()).to_vec()
}
