//! The one message of a reader after the greeting: a block that it copied was damaged.
//!
//! `docs/protocol.md` shows the layout. Knows no sockets.

use flexkv_block::{BlockKey, Location};
use flexkv_ports::Suspect;

/// Bytes of a report.
pub(super) const REPORT_BYTES: usize = 32;
/// First bytes of a report.
const REPORT_MAGIC: [u8; 8] = *b"FKSUSPCT";

/// The message's bytes.
pub(super) fn encode(suspect: Suspect) -> [u8; REPORT_BYTES] {
    let mut out = [0; REPORT_BYTES];
    out[0..8].copy_from_slice(&REPORT_MAGIC);
    out[8..16].copy_from_slice(&suspect.location.to_word().to_le_bytes());
    out[16..32].copy_from_slice(&suspect.key.to_bytes());
    out
}

/// Reads a report; `None` if it is none, or names no location.
pub(super) fn decode(bytes: &[u8; REPORT_BYTES]) -> Option<Suspect> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (word, rest) = rest.split_first_chunk()?;
    let (key, _) = rest.split_first_chunk()?;
    let location = Location::from_word(u64::from_le_bytes(*word))?;
    (*magic == REPORT_MAGIC).then(|| Suspect {
        location,
        key: BlockKey::from_bytes(*key),
    })
}

#[cfg(test)]
mod tests {
    use flexkv_block::{Generation, SlotId, Tier};

    use super::*;

    #[test]
    fn a_report_says_the_same_when_it_is_read_and_garbage_is_none() {
        let suspect = Suspect {
            location: Location {
                tier: Tier::Host,
                slot: SlotId(7),
                generation: Generation::FIRST,
            },
            key: BlockKey::from_u128(0x1234_5678),
        };
        let bytes = encode(suspect);
        assert_eq!(decode(&bytes), Some(suspect));
        for (at, wrong) in [(0, b'X'), (7, 0)] {
            let mut other = bytes;
            other[at] = wrong;
            assert_eq!(decode(&other), None, "magic");
        }
        let mut nowhere = bytes;
        nowhere[8..16].fill(0);
        assert_eq!(decode(&nowhere), None, "no location");
    }
}
