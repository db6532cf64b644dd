//! The local protocol's bytes: frames, requests and replies, as `docs/protocol.md` lists them.
//!
//! Pure and bounded: decoding any bytes gives a message or an error that names what is wrong, and
//! allocates no more than a small multiple of the bytes given. Knows nothing of sockets, sessions
//! or what a message makes anyone do.

mod greeting;
mod reply;
mod request;

use flexkv_block::BlockKey;
use thiserror::Error;

pub use greeting::{Hello, RefusalCode, Refused, Welcome};
pub use reply::{PlacedBlock, Reply};
pub use request::Request;

/// First bytes of a greeting, in both directions.
pub const MAGIC: [u8; 4] = *b"FKVL";
/// Version of the local protocol spoken here.
pub const VERSION: u16 = 2;
/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 12;
/// Most keys, filled slots or blocks that one frame may carry.
pub const MAX_ITEMS: usize = 1 << 20;
/// Largest body of any frame: a `Loaded` reply with [`MAX_ITEMS`] blocks.
pub const MAX_BODY_BYTES: usize = 12 + PlacedBlock::BYTES * MAX_ITEMS;
/// Most bytes of a text in a refusal or failure; longer ones are cut.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Bytes of a header that the length field counts: all but the length itself.
const COUNTED: usize = HEADER_BYTES - 4;

/// What is wrong with the bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The length field is over the receiver's limit.
    #[error("frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// The length announced.
        length: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The length field does not even cover the header.
    #[error("frame length {length} is shorter than its header")]
    TooShort {
        /// The length announced.
        length: usize,
    },
    /// A field that must be 0 is not.
    #[error("{message}: reserved field is {found:#x}, not 0")]
    Reserved {
        /// The message it is in.
        message: &'static str,
        /// Its value.
        found: u32,
    },
    /// A kind that does not exist, or that may not come here.
    #[error("frame kind {kind:#06x} is not {expected}")]
    Kind {
        /// The kind found.
        kind: u16,
        /// What was expected.
        expected: &'static str,
    },
    /// The body ends before a field does.
    #[error("{message}: body ends inside `{field}`")]
    Truncated {
        /// The message.
        message: &'static str,
        /// The field that is cut.
        field: &'static str,
    },
    /// The body goes on after the last field.
    #[error("{message}: {bytes} bytes after the last field")]
    Trailing {
        /// The message.
        message: &'static str,
        /// How many bytes.
        bytes: usize,
    },
    /// A list is longer than allowed.
    #[error("{message}: {count} items in `{field}` are over the limit of {MAX_ITEMS}")]
    TooMany {
        /// The message.
        message: &'static str,
        /// The list.
        field: &'static str,
        /// Items announced.
        count: usize,
    },
    /// A greeting without the protocol's magic.
    #[error("{message}: magic {found:02x?} is not that of the local protocol")]
    Magic {
        /// The message.
        message: &'static str,
        /// The bytes found.
        found: [u8; 4],
    },
    /// A number that stands for nothing.
    #[error("{message}: `{field}` has the unknown value {found}")]
    Unknown {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// A text that is not UTF-8.
    #[error("{message}: text is not UTF-8")]
    Text {
        /// The message.
        message: &'static str,
    },
}

/// The fixed first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: u16,
    /// Pairs a reply with its request; 0 where no pairing is wanted.
    pub id: u32,
    /// Bytes of the body.
    pub body: usize,
}

impl Header {
    /// Reads a header; a body over `limit` bytes is refused.
    pub fn decode(bytes: &[u8; HEADER_BYTES], limit: usize) -> Result<Self, WireError> {
        let [l0, l1, l2, l3, k0, k1, r0, r1, i0, i1, i2, i3] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = length.checked_sub(COUNTED) else {
            return Err(WireError::TooShort { length });
        };
        if body > limit {
            return Err(WireError::TooLong {
                length,
                limit: limit + COUNTED,
            });
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(WireError::Reserved {
                message: "frame header",
                found: reserved.into(),
            });
        }
        Ok(Self {
            kind: u16::from_le_bytes([k0, k1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            body,
        })
    }
}

/// Appends a frame whose body `fill` writes.
///
/// # Panics
/// If the body is over [`MAX_BODY_BYTES`], which every decoder would refuse.
fn put_frame(out: &mut Vec<u8>, kind: u16, id: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&id.to_le_bytes());
    fill(out);
    let body = out.len() - start - HEADER_BYTES;
    assert!(body <= MAX_BODY_BYTES, "frame body of {body} bytes");
    let length = ((body + COUNTED) as u32).to_le_bytes();
    out[start..start + 4].copy_from_slice(&length);
}

/// `value` as the wire's 32 bits; larger values become the largest.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn put_keys(out: &mut Vec<u8>, keys: &[BlockKey]) {
    out.extend_from_slice(&narrow(keys.len()).to_le_bytes());
    let start = out.len();
    out.resize(start + keys.len() * BlockKey::BYTES, 0);
    let (places, _) = out[start..].as_chunks_mut();
    for (place, key) in places.iter_mut().zip(keys) {
        *place = key.to_bytes();
    }
}

/// Length u16 and bytes, cut to [`MAX_TEXT_BYTES`] at a character's border.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Reads a body field by field; every error names message and field.
struct Fields<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(message: &'static str, body: &'a [u8]) -> Self {
        Self {
            message,
            rest: body,
        }
    }

    fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        let Some((now, later)) = self.rest.split_at_checked(count) else {
            let message = self.message;
            return Err(WireError::Truncated { message, field });
        };
        self.rest = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(field, N)?);
        Ok(out)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn u128(&mut self, field: &'static str) -> Result<u128, WireError> {
        self.array(field).map(u128::from_le_bytes)
    }

    fn zero(&mut self, bytes: usize) -> Result<(), WireError> {
        let message = self.message;
        match self.bytes("reserved", bytes)?.iter().find(|b| **b != 0) {
            None => Ok(()),
            Some(byte) => Err(WireError::Reserved {
                message,
                found: u32::from(*byte),
            }),
        }
    }

    fn magic(&mut self) -> Result<(), WireError> {
        let message = self.message;
        match self.array("magic")? {
            MAGIC => Ok(()),
            found => Err(WireError::Magic { message, found }),
        }
    }

    fn text(&mut self) -> Result<String, WireError> {
        let length = usize::from(self.u16("text length")?);
        let message = self.message;
        std::str::from_utf8(self.bytes("text", length)?)
            .map(str::to_owned)
            .map_err(|_| WireError::Text { message })
    }

    /// A count and that many items of `N` bytes, which must all be there before any is read.
    fn list<const N: usize, T>(
        &mut self,
        field: &'static str,
        item: impl Fn(&[u8; N]) -> T,
    ) -> Result<Vec<T>, WireError> {
        let message = self.message;
        let count = self.u32(field)? as usize;
        if count > MAX_ITEMS {
            return Err(WireError::TooMany {
                message,
                field,
                count,
            });
        }
        let (items, _) = self.bytes(field, count * N)?.as_chunks::<N>();
        Ok(items.iter().map(item).collect())
    }

    fn keys(&mut self) -> Result<Vec<BlockKey>, WireError> {
        self.list("keys", |bytes| BlockKey::from_bytes(*bytes))
    }

    /// `message`, if nothing is left.
    fn end<T>(self, message: T) -> Result<T, WireError> {
        match self.rest.len() {
            0 => Ok(message),
            bytes => Err(WireError::Trailing {
                message: self.message,
                bytes,
            }),
        }
    }
}

/// `N` bytes of an item, from byte `at`.
fn part<const N: usize>(item: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&item[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
