//! The block frame: a 64-byte header before a block's bytes, the same on the wire and on disk.
//!
//! ```text
//! offset size  field
//!      0    4  magic "FKVB"
//!      4    2  version, u16 LE
//!      6    2  reserved, 0
//!      8   16  key, u128 LE
//!     24    8  location word (tier, generation, slot) at the owner, u64 LE
//!     32    4  payload length in bytes, u32 LE
//!     36    4  reserved, 0
//!     40    8  checksum of the payload, XXH3-64, u64 LE
//!     48    8  reserved, 0
//!     56    8  checksum of bytes 0..56 of the header, XXH3-64, u64 LE
//! ```
//! Knows nothing of where a frame is sent or stored.

use std::hash::Hasher as _;

use thiserror::Error;
use twox_hash::XxHash3_64;

use crate::{BlockKey, BlockLayout, Location};

/// First bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"FKVB";
/// Version of the frame written here.
pub const FRAME_VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;

/// Bytes of the header that its own checksum covers.
const COVERED: usize = 56;

/// XXH3-64 of a block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// The checksum of `payload`.
    pub fn of(payload: &[u8]) -> Self {
        Self(XxHash3_64::oneshot(payload))
    }

    /// A checksum to be fed piece by piece; the pieces' borders do not matter.
    pub fn stream() -> ChecksumStream {
        ChecksumStream(XxHash3_64::new())
    }
}

/// A checksum being computed, see [`Checksum::stream`].
#[derive(Clone)]
pub struct ChecksumStream(XxHash3_64);

impl ChecksumStream {
    /// Feeds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The checksum of all bytes fed.
    pub fn finish(&self) -> Checksum {
        Checksum(self.0.finish())
    }
}

impl std::fmt::Debug for ChecksumStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChecksumStream(..)")
    }
}

/// What is wrong with a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The header's checksum does not match its bytes.
    #[error("block frame header is damaged (checksum {found:016x}, computed {computed:016x})")]
    Damaged {
        /// The checksum in the header.
        found: u64,
        /// The checksum of the header's bytes.
        computed: u64,
    },
    /// The length is over the largest block.
    #[error(
        "block frame of {length} bytes is over the limit of {}",
        BlockLayout::MAX_BLOCK_BYTES
    )]
    Length {
        /// The length in the header.
        length: u32,
    },
    /// The location names no tier or generation.
    #[error("block frame has the invalid location {word:#018x}")]
    Location {
        /// The location word in the header.
        word: u64,
    },
    /// Not a block frame at all.
    #[error("not a block frame (magic {found:02x?})")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A reserved field is not 0.
    #[error("block frame has a reserved field set")]
    Reserved,
    /// The frame ends before its header does.
    #[error("block frame header has {bytes} of {FRAME_HEADER_BYTES} bytes")]
    Truncated {
        /// How many bytes there were.
        bytes: usize,
    },
    /// A version this build does not read.
    #[error("block frame version {found} is not readable here (this build reads {FRAME_VERSION})")]
    Version {
        /// The version in the header.
        found: u16,
    },
}

/// What a frame's header says of the bytes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The block's key.
    pub key: BlockKey,
    /// Where the block lay at its owner.
    pub location: Location,
    /// Bytes of the payload.
    pub length: u32,
    /// Checksum of the payload.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// The header's bytes.
    ///
    /// # Panics
    /// If `length` is over [`BlockLayout::MAX_BLOCK_BYTES`], which `decode` would refuse.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        assert!(
            u64::from(self.length) <= BlockLayout::MAX_BLOCK_BYTES,
            "block too large"
        );
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[4..6].copy_from_slice(&FRAME_VERSION.to_le_bytes());
        out[8..24].copy_from_slice(&self.key.to_bytes());
        out[24..32].copy_from_slice(&self.location.to_word().to_le_bytes());
        out[32..36].copy_from_slice(&self.length.to_le_bytes());
        out[40..48].copy_from_slice(&self.checksum.0.to_le_bytes());
        let own = XxHash3_64::oneshot(&out[..COVERED]);
        out[COVERED..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads a header from the first bytes of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(FrameError::Truncated { bytes: bytes.len() });
        };
        let magic = take::<4>(header, 0);
        if magic != FRAME_MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let version = u16::from_le_bytes(take(header, 4));
        if version != FRAME_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let computed = XxHash3_64::oneshot(&header[..COVERED]);
        let found = u64::from_le_bytes(take(header, COVERED));
        if computed != found {
            return Err(FrameError::Damaged { found, computed });
        }
        if [&header[6..8], &header[36..40], &header[48..56]]
            .concat()
            .iter()
            .any(|byte| *byte != 0)
        {
            return Err(FrameError::Reserved);
        }
        let word = u64::from_le_bytes(take(header, 24));
        let location = Location::from_word(word).ok_or(FrameError::Location { word })?;
        let length = u32::from_le_bytes(take(header, 32));
        if u64::from(length) > BlockLayout::MAX_BLOCK_BYTES {
            return Err(FrameError::Length { length });
        }
        Ok(Self {
            key: BlockKey::from_bytes(take(header, 8)),
            location,
            length,
            checksum: Checksum(u64::from_le_bytes(take(header, 40))),
        })
    }
}

fn take<const N: usize>(header: &[u8; FRAME_HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
