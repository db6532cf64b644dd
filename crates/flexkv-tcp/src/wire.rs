//! The bytes of the TCP protocol after the greeting: request and response, as values and back.
//!
//! Every message has a fixed size that follows from what was read before it, so that a reader
//! never guesses. `docs/protocol.md` shows the layouts. Knows nothing of sockets, threads or tiers.

use flexkv_block::{BlockKey, FRAME_HEADER_BYTES, FrameError, FrameHeader, Location};
use thiserror::Error;

/// First bytes that either side sends.
pub const MAGIC: [u8; 8] = *b"FKV-TCP\n";
/// Version of the protocol spoken here.
pub const VERSION: u16 = 2;
/// First bytes of a request.
pub const REQUEST_MAGIC: [u8; 4] = *b"FKRQ";
/// First bytes of a response.
pub const RESPONSE_MAGIC: [u8; 4] = *b"FKRS";

/// Bytes of a [`Request`] without its entries.
pub const REQUEST_BYTES: usize = 32;
/// Bytes of an [`Entry`].
pub const ENTRY_BYTES: usize = 24;
/// The most blocks one request may ask for.
pub const MAX_COUNT: u32 = 4096;
/// Bytes of a [`Response`] without its answers.
pub const RESPONSE_BYTES: usize = 16;
/// Bytes of an [`Answer`]: status and frame header.
pub const ANSWER_BYTES: usize = 8 + FRAME_HEADER_BYTES;

/// What a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestKind {
    /// `count` entries follow, each a block to send.
    Fetch = 1,
    /// Nothing follows; only `released` is of interest.
    Release = 2,
    /// `count` entries follow, each a block that arrived damaged. Not answered.
    Report = 3,
}

/// A request without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub kind: RequestKind,
    /// Its number: above those of all requests before it on the connection. A release or report
    /// repeats the last one.
    pub id: u32,
    /// Number of entries that follow.
    pub count: u32,
    /// The payloads of all requests up to this number have been read; 0 for none.
    pub released: u32,
    /// Milliseconds after which the reader no longer wants the answer.
    pub patience_ms: u32,
}

/// One block of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The location word. Any value: one that is no location is answered as stale.
    pub location: u64,
    /// Which block it must be.
    pub key: BlockKey,
}

/// A response without its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The owner keeps the blocks pinned until their request is released.
    pub held: bool,
    /// The request is larger than the owner allows. No answers follow; the owner closes.
    pub oversized: bool,
    /// The request's number.
    pub id: u32,
    /// The request's count.
    pub count: u32,
}

/// The answer for one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The payload that the header describes follows after all answers.
    Found(FrameHeader),
    /// The owner has no such block there; no payload.
    Stale,
}

const FOUND: u8 = 1;
const STALE: u8 = 2;
const FLAG_HELD: u16 = 1;
const FLAG_OVERSIZED: u16 = 2;

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Too many blocks, or a number that does not fit the request.
    #[error("{what} has count {found}")]
    Count {
        /// Which message.
        what: &'static str,
        /// The count in it.
        found: u32,
    },
    /// The frame header of an answer is none.
    #[error("answer with a bad frame header: {0}")]
    Frame(#[from] FrameError),
    /// A number out of sequence.
    #[error("{what} has the unexpected id {found}")]
    Id {
        /// Which message.
        what: &'static str,
        /// The id in it.
        found: u32,
    },
    /// Not such a message at all.
    #[error("no {what} (it begins with {found:02x?})")]
    Magic {
        /// Which message was expected.
        what: &'static str,
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A field has a value without a meaning.
    #[error("{what} has the unknown {field} {found}")]
    Unknown {
        /// Which message.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u32,
    },
}

impl Request {
    /// The message's bytes.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC);
        out[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[8..12].copy_from_slice(&self.id.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..20].copy_from_slice(&self.released.to_le_bytes());
        out[20..24].copy_from_slice(&self.patience_ms.to_le_bytes());
        out
    }

    /// Reads a request; the count is one that [`MAX_COUNT`] and the kind allow.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, WireError> {
        const WHAT: &str = "request";
        magic(WHAT, bytes, &REQUEST_MAGIC)?;
        let count = u32_at(bytes, 12);
        let (kind, counts) = match u16_at(bytes, 4) {
            1 => (RequestKind::Fetch, 1..=MAX_COUNT),
            2 => (RequestKind::Release, 0..=0),
            3 => (RequestKind::Report, 1..=MAX_COUNT),
            found => return Err(unknown(WHAT, "kind", found)),
        };
        if !counts.contains(&count) {
            return Err(WireError::Count {
                what: WHAT,
                found: count,
            });
        }
        let id = u32_at(bytes, 8);
        let released = u32_at(bytes, 16);
        if released > id {
            return Err(WireError::Id {
                what: "release",
                found: released,
            });
        }
        Ok(Self {
            kind,
            id,
            count,
            released,
            patience_ms: u32_at(bytes, 20),
        })
    }
}

impl Entry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[0..8].copy_from_slice(&self.location.to_le_bytes());
        out[8..24].copy_from_slice(&self.key.to_bytes());
        out
    }

    /// Reads an entry; every value is one.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        Self {
            location: u64::from_le_bytes(take(bytes, 0)),
            key: BlockKey::from_bytes(take(bytes, 8)),
        }
    }

    /// The location, if the word is one.
    pub fn location(&self) -> Option<Location> {
        Location::from_word(self.location)
    }
}

impl Response {
    /// The message's bytes.
    pub fn encode(&self) -> [u8; RESPONSE_BYTES] {
        let mut out = [0; RESPONSE_BYTES];
        let flags = FLAG_HELD * u16::from(self.held) + FLAG_OVERSIZED * u16::from(self.oversized);
        out[0..4].copy_from_slice(&RESPONSE_MAGIC);
        out[4..6].copy_from_slice(&flags.to_le_bytes());
        out[8..12].copy_from_slice(&self.id.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    /// Reads the response to a request of number `id` with `count` entries.
    pub fn decode(bytes: &[u8; RESPONSE_BYTES], id: u32, count: u32) -> Result<Self, WireError> {
        const WHAT: &str = "response";
        magic(WHAT, bytes, &RESPONSE_MAGIC)?;
        let flags = u16_at(bytes, 4);
        if flags & !(FLAG_HELD | FLAG_OVERSIZED) != 0 {
            return Err(unknown(WHAT, "flags", flags));
        }
        let response = Self {
            held: flags & FLAG_HELD != 0,
            oversized: flags & FLAG_OVERSIZED != 0,
            id: u32_at(bytes, 8),
            count: u32_at(bytes, 12),
        };
        if response.id != id {
            return Err(WireError::Id {
                what: WHAT,
                found: response.id,
            });
        }
        if response.count != count {
            return Err(WireError::Count {
                what: WHAT,
                found: response.count,
            });
        }
        Ok(response)
    }
}

impl Answer {
    /// The answer's bytes.
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let mut out = [0; ANSWER_BYTES];
        match self {
            Self::Found(header) => {
                out[0] = FOUND;
                out[8..].copy_from_slice(&header.encode());
            }
            Self::Stale => out[0] = STALE,
        }
        out
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, WireError> {
        match bytes[0] {
            FOUND => Ok(Self::Found(FrameHeader::decode(&bytes[8..])?)),
            STALE => Ok(Self::Stale),
            found => Err(unknown("answer", "status", found)),
        }
    }
}

fn magic<const N: usize>(
    what: &'static str,
    bytes: &[u8],
    expected: &[u8; N],
) -> Result<(), WireError> {
    if bytes.starts_with(expected) {
        return Ok(());
    }
    Err(WireError::Magic {
        what,
        found: take(bytes, 0),
    })
}

fn unknown(what: &'static str, field: &'static str, found: impl Into<u32>) -> WireError {
    WireError::Unknown {
        what,
        field,
        found: found.into(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

/// The `N` bytes from `at`; callers pass messages of fixed size, which hold them.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
