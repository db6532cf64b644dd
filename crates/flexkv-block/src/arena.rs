//! Where things lie in an arena's file, byte by byte.
//!
//! ```text
//! offset          size  content
//! 0               4096  header
//! 4096      64 * slots  descriptors, one a slot
//! payload              payloads: slot i at payload + i * stride
//! ```
//! `payload` is the end of the descriptors rounded up to 4096; `stride` is the size of a block
//! rounded up to 64, or to 4096 if a block has 4096 bytes or more. The file ends after the last
//! slot, rounded up to 4096. It is sealed against shrinking and growing.
//!
//! Header (written once, before anyone else sees the file; the rest of the page is 0):
//!
//! ```text
//! offset size  field
//!      0    4  magic "FKVA"
//!      4    2  version, u16 LE, 1
//!      6    2  reserved, 0
//!      8    8  arena id, u64 LE: random, differs between two arenas
//!     16   16  namespace, u128 LE
//!     32    8  bytes of a block, u64 LE
//!     40    4  slots, u32 LE
//!     44    4  reserved, 0
//!     48    8  stride, u64 LE
//!     56    8  payload, u64 LE
//!     64    8  bytes of the file, u64 LE
//!     72    8  XXH3-64 of bytes 0..72, u64 LE
//! ```
//!
//! Descriptor:
//!
//! ```text
//! offset size  field
//!      0    8  location word of the block in the slot, u64 LE; 0 while the slot holds none
//!      8   16  its key, u128 LE
//!     24    8  XXH3-64 of its bytes, u64 LE
//!     32   32  reserved, 0
//! ```
//! Knows nothing of memory: how a descriptor is read while it changes is the reader's affair.

use thiserror::Error;

use crate::{BlockKey, BlockLayout, Checksum, Location, NamespaceId, SlotId};

/// First bytes of an arena.
const MAGIC: [u8; 4] = *b"FKVA";
/// Version written and read here.
const VERSION: u16 = 1;
/// Bytes of the header's fields.
pub const ARENA_HEADER_BYTES: usize = 80;
/// Bytes of the header that its checksum covers.
const COVERED: usize = 72;
/// Where descriptors begin, and the unit that parts of the file are rounded to.
const PAGE: u64 = 4096;
/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Slots of small blocks begin at multiples of this.
const LINE: u64 = 64;

/// Why there is no such arena.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArenaError {
    /// A block must have at least 1 byte and at most [`BlockLayout::MAX_BLOCK_BYTES`].
    #[error(
        "an arena cannot have blocks of {bytes} bytes (1 to {} are possible)",
        BlockLayout::MAX_BLOCK_BYTES
    )]
    BlockBytes {
        /// The size asked for.
        bytes: u64,
    },
    /// An arena must have at least one slot.
    #[error("an arena must have at least one slot")]
    NoSlots,
    /// The arena would not fit into the machine.
    #[error(
        "an arena of {slots} slots of {block_bytes} bytes does not fit into this machine's \
         {memory} bytes of memory"
    )]
    TooLarge {
        /// Slots asked for.
        slots: u32,
        /// Bytes a block.
        block_bytes: u64,
        /// What the machine has.
        memory: u64,
    },
    /// The file is not an arena at all.
    #[error("not an arena (magic {found:02x?})")]
    Magic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// An arena of a version this build does not read.
    #[error("arena version {found} is not readable here (this build reads 1)")]
    Version {
        /// The version in the header.
        found: u16,
    },
    /// The header contradicts itself or its checksum.
    #[error("the arena's header is damaged")]
    Damaged,
    /// The file is shorter or longer than its header says.
    #[error("the arena has {found} bytes where its header says {expected}")]
    Length {
        /// Bytes by the header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
}

/// What a slot holds, as its descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the block lies, with its generation.
    pub location: Location,
    /// Which block it is.
    pub key: BlockKey,
    /// Checksum of its bytes.
    pub checksum: Checksum,
}

impl Descriptor {
    /// The words of the descriptor, in order: location, key (low, high), checksum.
    pub fn to_words(self) -> [u64; 4] {
        let key = self.key.as_u128();
        let location = self.location.to_word();
        [location, key as u64, (key >> 64) as u64, self.checksum.0]
    }

    /// What the words say of `slot`; `None` if it holds no block.
    pub fn from_words(words: [u64; 4], slot: SlotId) -> Option<Self> {
        let [location, low, high, checksum] = words;
        let location = Location::from_word(location).filter(|location| location.slot == slot)?;
        Some(Self {
            location,
            key: BlockKey::from_u128((u128::from(high) << 64) | u128::from(low)),
            checksum: Checksum(checksum),
        })
    }

    /// What the bytes of a descriptor say of `slot`; `None` if it holds no block.
    pub fn from_bytes(bytes: &[u8; DESCRIPTOR_BYTES], slot: SlotId) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        Self::from_words([word(0), word(1), word(2), word(3)], slot)
    }
}

/// An arena's size and the place of everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    arena: u64,
    namespace: NamespaceId,
    slots: u32,
    block_bytes: u64,
    stride: u64,
    payload: u64,
    file_bytes: u64,
}

impl ArenaLayout {
    /// The layout of an arena of `slots` blocks of `block_bytes` bytes in a machine that has
    /// `memory` bytes.
    pub fn new(
        arena: u64,
        namespace: NamespaceId,
        slots: u32,
        block_bytes: u64,
        memory: u64,
    ) -> Result<Self, ArenaError> {
        if block_bytes == 0 || block_bytes > BlockLayout::MAX_BLOCK_BYTES {
            return Err(ArenaError::BlockBytes { bytes: block_bytes });
        }
        if slots == 0 {
            return Err(ArenaError::NoSlots);
        }
        let unit = if block_bytes < PAGE { LINE } else { PAGE };
        let stride = block_bytes.next_multiple_of(unit);
        // At most 2^32 * 2^30 bytes of payload and 2^38 of descriptors: no overflow.
        let payload = (PAGE + DESCRIPTOR_BYTES as u64 * u64::from(slots)).next_multiple_of(PAGE);
        let file_bytes = (payload + stride * u64::from(slots)).next_multiple_of(PAGE);
        if file_bytes > memory {
            return Err(ArenaError::TooLarge {
                slots,
                block_bytes,
                memory,
            });
        }
        Ok(Self {
            arena,
            namespace,
            slots,
            block_bytes,
            stride,
            payload,
            file_bytes,
        })
    }

    /// The arena's random name.
    pub fn arena(&self) -> u64 {
        self.arena
    }

    /// The namespace whose blocks it holds.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes as usize
    }

    /// Where the payload of `slot` begins; `None` if there is no such slot.
    pub fn payload_offset(&self, slot: SlotId) -> Option<usize> {
        let offset = self.payload + self.stride * u64::from(slot.0);
        (slot.0 < self.slots).then_some(offset as usize)
    }

    /// Where the descriptor of `slot` begins; `None` if there is no such slot.
    pub fn descriptor_offset(&self, slot: SlotId) -> Option<usize> {
        let offset = PAGE + DESCRIPTOR_BYTES as u64 * u64::from(slot.0);
        (slot.0 < self.slots).then_some(offset as usize)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; ARENA_HEADER_BYTES] {
        let mut out = [0; ARENA_HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[8..16].copy_from_slice(&self.arena.to_le_bytes());
        out[16..32].copy_from_slice(&self.namespace.as_u128().to_le_bytes());
        out[32..40].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.slots.to_le_bytes());
        out[48..56].copy_from_slice(&self.stride.to_le_bytes());
        out[56..64].copy_from_slice(&self.payload.to_le_bytes());
        out[64..72].copy_from_slice(&self.file_bytes.to_le_bytes());
        let sum = Checksum::of(&out[..COVERED]);
        out[COVERED..].copy_from_slice(&sum.0.to_le_bytes());
        out
    }

    /// Reads the header of a file of `file_bytes` bytes. Every field must be what this version
    /// would write for the header's number and size of slots.
    pub fn decode(header: &[u8; ARENA_HEADER_BYTES], file_bytes: u64) -> Result<Self, ArenaError> {
        let magic = take::<4>(header, 0);
        if magic != MAGIC {
            return Err(ArenaError::Magic { found: magic });
        }
        let version = u16::from_le_bytes(take(header, 4));
        if version != VERSION {
            return Err(ArenaError::Version { found: version });
        }
        let layout = Self::new(
            u64::from_le_bytes(take(header, 8)),
            NamespaceId::from_u128(u128::from_le_bytes(take(header, 16))),
            u32::from_le_bytes(take(header, 40)),
            u64::from_le_bytes(take(header, 32)),
            u64::MAX,
        );
        let layout = layout.map_err(|_| ArenaError::Damaged)?;
        if layout.encode() != *header {
            return Err(ArenaError::Damaged);
        }
        if layout.file_bytes != file_bytes {
            return Err(ArenaError::Length {
                expected: layout.file_bytes,
                found: file_bytes,
            });
        }
        Ok(layout)
    }
}

fn take<const N: usize>(header: &[u8; ARENA_HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
