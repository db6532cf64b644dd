//! What reader and owner say after the greeting, byte by byte: `docs/protocol.md`, section Shared memory.
//! Knows nothing of sockets, and not what is done about it.

use flexkv_block::{BlockKey, Location};
use flexkv_ports::Suspect;

/// Bytes of whatever a reader says, without the blocks that it names.
pub(super) const SAID_BYTES: usize = 32;
/// Bytes of a block that is named in a request.
pub(super) const NAMED_BYTES: usize = 24;
/// Bytes of an answer, without its locations.
pub(super) const ANSWER_BYTES: usize = 24;
/// Bytes of a location.
pub(super) const WORD_BYTES: usize = 8;
/// The most blocks of a request.
pub(super) const COUNT_MAX: usize = 1024;

const ASK: [u8; 8] = *b"FKSTGASK";
const END: [u8; 8] = *b"FKSTGEND";
const ANSWER: [u8; 8] = *b"FKSTGANS";

/// A block, and where the reader believes it to be.
pub(super) type Named = (Location, BlockKey);

/// What a reader says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A block arrived damaged.
    Report(Suspect),
    /// Blocks are to be brought to memory, and held there.
    Ask {
        /// Names the request.
        id: u64,
        /// How many blocks are named next.
        count: usize,
        /// How long the reader waits for them.
        patience_ms: u32,
    },
    /// They need not be held any more.
    End {
        /// The request.
        id: u64,
    },
}

impl Said {
    pub(super) fn encode(self) -> [u8; SAID_BYTES] {
        let mut out = [0; SAID_BYTES];
        match self {
            Self::Report(suspect) => return suspect.encode(),
            Self::Ask {
                id,
                count,
                patience_ms,
            } => {
                out[0..8].copy_from_slice(&ASK);
                out[8..16].copy_from_slice(&id.to_le_bytes());
                out[16..20].copy_from_slice(&(count as u32).to_le_bytes());
                out[20..24].copy_from_slice(&patience_ms.to_le_bytes());
            }
            Self::End { id } => {
                out[0..8].copy_from_slice(&END);
                out[8..16].copy_from_slice(&id.to_le_bytes());
            }
        }
        out
    }

    /// `None` if it is nothing that a reader may say.
    pub(super) fn decode(bytes: &[u8; SAID_BYTES]) -> Option<Self> {
        if let Some(suspect) = Suspect::decode(bytes) {
            return Some(Self::Report(suspect));
        }
        let (magic, rest) = bytes.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (patience_ms, _) = rest.split_first_chunk()?;
        let id = u64::from_le_bytes(*id);
        match *magic {
            ASK => Some(Self::Ask {
                id,
                count: counted(*count)?,
                patience_ms: u32::from_le_bytes(*patience_ms),
            }),
            END => Some(Self::End { id }),
            _ => None,
        }
    }
}

/// A request with the blocks that it names.
pub(super) fn ask(id: u64, blocks: &[Named], patience_ms: u32) -> Vec<u8> {
    let count = blocks.len();
    let mut out = Vec::with_capacity(SAID_BYTES + NAMED_BYTES * count);
    let head = Said::Ask {
        id,
        count,
        patience_ms,
    };
    out.extend_from_slice(&head.encode());
    for (location, key) in blocks {
        out.extend_from_slice(&location.to_word().to_le_bytes());
        out.extend_from_slice(&key.to_bytes());
    }
    out
}

/// The blocks that a request names; `None` if one of them has no location.
pub(super) fn named(bytes: &[u8]) -> Option<Vec<Named>> {
    let (blocks, _) = bytes.as_chunks::<NAMED_BYTES>();
    let block = |bytes: &[u8; NAMED_BYTES]| {
        let (word, rest) = bytes.split_first_chunk()?;
        let (key, _) = rest.split_first_chunk()?;
        let location = Location::from_word(u64::from_le_bytes(*word))?;
        Some((location, BlockKey::from_bytes(*key)))
    };
    blocks.iter().map(block).collect()
}

/// What an owner says: where blocks are held, in the order in which they were named.
pub(super) fn answer(id: u64, held: &[Option<Location>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ANSWER_BYTES + WORD_BYTES * held.len());
    out.extend_from_slice(&ANSWER);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(held.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for location in held {
        let word = location.map_or(0, Location::to_word);
        out.extend_from_slice(&word.to_le_bytes());
    }
    out
}

/// Which request an answer is to, and how many locations follow; `None` if it is none.
pub(super) fn answered(bytes: &[u8; ANSWER_BYTES]) -> Option<(u64, usize)> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (count, _) = rest.split_first_chunk()?;
    let count = counted(*count)?;
    (*magic == ANSWER).then(|| (u64::from_le_bytes(*id), count))
}

/// The locations of an answer, none for a block that is not held.
pub(super) fn held(bytes: &[u8]) -> Vec<Option<Location>> {
    let (words, _) = bytes.as_chunks::<WORD_BYTES>();
    let location = |word: &[u8; WORD_BYTES]| Location::from_word(u64::from_le_bytes(*word));
    words.iter().map(location).collect()
}

fn counted(bytes: [u8; 4]) -> Option<usize> {
    let count = u32::from_le_bytes(bytes) as usize;
    (1..=COUNT_MAX).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use flexkv_block::{Generation, SlotId, Tier};

    use super::*;

    fn block(slot: u32) -> Named {
        let location = Location {
            tier: Tier::Ssd,
            slot: SlotId(slot),
            generation: Generation::FIRST,
        };
        (location, BlockKey::from_u128(u128::from(slot) << 70 | 9))
    }

    #[test]
    fn what_is_said_reads_back() {
        let (location, key) = block(3);
        for said in [
            Said::Report(Suspect { location, key }),
            Said::Ask {
                id: u64::MAX,
                count: COUNT_MAX,
                patience_ms: 7,
            },
            Said::End { id: 1 },
        ] {
            assert_eq!(Said::decode(&said.encode()), Some(said));
        }
    }

    #[test]
    fn a_request_and_its_answer_read_back() {
        let blocks = [block(1), block(2)];
        let bytes = ask(5, &blocks, 100);
        let (head, rest) = bytes.split_first_chunk().expect("a head");
        let said = Said::Ask {
            id: 5,
            count: 2,
            patience_ms: 100,
        };
        assert_eq!(Said::decode(head), Some(said));
        assert_eq!(named(rest), Some(blocks.to_vec()));

        let places = [None, Some(block(9).0)];
        let bytes = answer(5, &places);
        let (head, rest) = bytes.split_first_chunk().expect("a head");
        assert_eq!(answered(head), Some((5, 2)));
        assert_eq!(held(rest), places);
    }

    #[test]
    fn what_may_not_be_said_is_none() {
        assert_eq!(Said::decode(&[0; SAID_BYTES]), None);
        assert_eq!(answered(&[0; ANSWER_BYTES]), None);
        for count in [0, COUNT_MAX + 1] {
            let ask = Said::Ask {
                id: 1,
                count,
                patience_ms: 1,
            };
            assert_eq!(Said::decode(&ask.encode()), None, "{count} blocks");
        }
        assert_eq!(named(&[0; NAMED_BYTES]), None, "no location");
    }
}
