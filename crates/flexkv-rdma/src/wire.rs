//! What reader and owner tell each other after the greeting, byte by byte, and what a reader makes
//! of an owner's table of chunks. Knows no socket and no device.
//!
//! ```text
//! offset  size  field of an introduction (reader and owner)
//!      0     4  magic: "FKRO" of the reader, "FKRA" of the owner
//!      4     4  number of its queue pair, u32 LE
//!      8     4  number of its first packet, u32 LE
//!     12     2  local id of its port, u16 LE
//!     14     1  largest packet, 1 (256 bytes) to 5 (4096)
//!     15     1  link: 1 InfiniBand, 2 Ethernet
//!     16    16  GID of its port
//!     32     1  reads under way at a time: wished by the reader, granted by the owner
//!     33     7  reserved, 0
//! ```
//! The owner's introduction goes on:
//!
//! ```text
//!     40    80  header of its arena
//!    120     4  chunks, u32 LE, 1 to 65536
//!    124     4  reserved, 0
//!    128        chunks, 24 bytes each, that follow each other from the arena's first byte to its last:
//!               address (8), bytes (8), key (4), reserved (4)
//! ```

use flexkv_block::{ARENA_HEADER_BYTES, ArenaError, ArenaLayout, DESCRIPTOR_BYTES, SlotId};
use thiserror::Error;

use crate::nic::{Link, PortAddress, QueueAddress};

/// First bytes that either side sends.
pub(crate) const MAGIC: [u8; 8] = *b"FKV-RDM\n";
/// Version of the protocol spoken here.
pub(crate) const VERSION: u16 = 1;
/// Bytes of a reader's introduction.
pub(crate) const OFFER_BYTES: usize = 40;
/// Bytes of an owner's introduction before its chunks.
pub(crate) const ANSWER_BYTES: usize = 128;
/// Bytes of a chunk.
pub(crate) const CHUNK_BYTES: usize = 24;
/// The most chunks that an arena can have.
const MAX_CHUNKS: u32 = 1 << 16;
/// Numbers of queue pairs and packets have 24 bits.
const BITS_24: u32 = 0xff_ffff;

/// Where a queue pair is, and how many reads it wants or grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) queue: QueueAddress,
    pub(crate) reads: u8,
}

/// A chunk of an owner's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) key: u32,
}

/// What is wrong with what the other side said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum WireError {
    #[error("no introduction (it begins with {found:02x?})")]
    Magic { found: [u8; 4] },
    #[error("the other side's introduction has the impossible {field} {found}")]
    Field { field: &'static str, found: u64 },
    #[error(transparent)]
    Arena(#[from] ArenaError),
    #[error("the owner's chunks are not its arena: {0}")]
    Chunks(&'static str),
}

/// A side of the introduction.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Reader,
    Owner,
}

impl Side {
    fn magic(self) -> [u8; 4] {
        match self {
            Self::Reader => *b"FKRO",
            Self::Owner => *b"FKRA",
        }
    }
}

impl Introduction {
    pub(crate) fn encode(&self, side: Side) -> [u8; OFFER_BYTES] {
        let QueueAddress {
            port,
            number,
            first_packet,
        } = self.queue;
        let mut out = [0; OFFER_BYTES];
        out[0..4].copy_from_slice(&side.magic());
        out[4..8].copy_from_slice(&number.to_le_bytes());
        out[8..12].copy_from_slice(&first_packet.to_le_bytes());
        out[12..14].copy_from_slice(&port.lid.to_le_bytes());
        out[14] = port.mtu;
        out[15] = port.link as u8;
        out[16..32].copy_from_slice(&port.gid);
        out[32] = self.reads;
        out
    }

    pub(crate) fn decode(bytes: &[u8; OFFER_BYTES], side: Side) -> Result<Self, WireError> {
        let found = take(bytes, 0);
        if found != side.magic() {
            return Err(WireError::Magic { found });
        }
        let impossible = |field, found| WireError::Field { field, found };
        let within = |field, found: u32, from: u32, to: u32| {
            let fits = (from..=to).contains(&found);
            fits.then_some(found)
                .ok_or_else(|| impossible(field, u64::from(found)))
        };
        let number = u32::from_le_bytes(take(bytes, 4));
        let first_packet = u32::from_le_bytes(take(bytes, 8));
        let link = Link::from_u8(bytes[15]);
        let link = link.ok_or_else(|| impossible("link", u64::from(bytes[15])))?;
        let mtu = within("packet size", u32::from(bytes[14]), 1, 5)? as u8;
        Ok(Self {
            queue: QueueAddress {
                port: PortAddress {
                    link,
                    lid: u16::from_le_bytes(take(bytes, 12)),
                    gid: take(bytes, 16),
                    mtu,
                },
                number: within("queue pair", number, 0, BITS_24)?,
                first_packet: within("first packet", first_packet, 0, BITS_24)?,
            },
            reads: within("number of reads", u32::from(bytes[32]), 1, 255)? as u8,
        })
    }
}

/// The owner's whole answer.
pub(crate) fn encode_answer(
    introduction: &Introduction,
    layout: &ArenaLayout,
    chunks: &[Chunk],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(ANSWER_BYTES + CHUNK_BYTES * chunks.len());
    out.extend_from_slice(&introduction.encode(Side::Owner));
    out.extend_from_slice(&layout.encode());
    out.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for chunk in chunks {
        out.extend_from_slice(&chunk.address.to_le_bytes());
        out.extend_from_slice(&chunk.bytes.to_le_bytes());
        out.extend_from_slice(&chunk.key.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    out
}

/// The beginning of an owner's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) introduction: Introduction,
    header: [u8; ARENA_HEADER_BYTES],
    /// How many chunks follow.
    chunks: u32,
}

impl Answer {
    pub(crate) fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, WireError> {
        let introduction = Introduction::decode(&take(bytes, 0), Side::Owner)?;
        let chunks = u32::from_le_bytes(take(bytes, 120));
        if !(1..=MAX_CHUNKS).contains(&chunks) {
            return Err(WireError::Field {
                field: "number of chunks",
                found: u64::from(chunks),
            });
        }
        Ok(Self {
            introduction,
            header: take(bytes, OFFER_BYTES),
            chunks,
        })
    }

    /// Bytes of the chunks, which follow.
    pub(crate) fn follows(&self) -> usize {
        self.chunks as usize * CHUNK_BYTES
    }

    /// The owner's arena, of which these bytes are the chunks.
    pub(crate) fn arena(&self, bytes: &[u8]) -> Result<OwnersArena, WireError> {
        let (parts, rest) = bytes.as_chunks::<CHUNK_BYTES>();
        if parts.len() != self.chunks as usize || !rest.is_empty() {
            return Err(WireError::Chunks("another number of them"));
        }
        let mut end = 0u64;
        let mut chunks = Vec::with_capacity(parts.len());
        for part in parts {
            let chunk = Chunk {
                address: u64::from_le_bytes(take(part, 0)),
                bytes: u64::from_le_bytes(take(part, 8)),
                key: u32::from_le_bytes(take(part, 16)),
            };
            let fits = chunk.address.checked_add(chunk.bytes).is_some();
            let next = end
                .checked_add(chunk.bytes)
                .filter(|next| *next > end && fits);
            chunks.push((end, chunk));
            end = next.ok_or(WireError::Chunks("one is empty or too large"))?;
        }
        // The header must be that of an arena as large as the chunks are together.
        let layout = ArenaLayout::decode(&self.header, end)?;
        let arena = OwnersArena { layout, chunks };
        arena.holds_slots_whole()?;
        Ok(arena)
    }
}

/// An owner's arena, as its readers see it.
#[derive(Clone, Debug)]
pub(crate) struct OwnersArena {
    pub(crate) layout: ArenaLayout,
    /// Each with its offset in the arena.
    chunks: Vec<(u64, Chunk)>,
}

impl OwnersArena {
    /// Address and key of `bytes` bytes from `offset` on; none if they are not in one chunk.
    pub(crate) fn find(&self, offset: usize, bytes: usize) -> Option<(u64, u32)> {
        let offset = offset as u64;
        let after = self.chunks.partition_point(|(start, _)| *start <= offset);
        let (start, chunk) = &self.chunks[after.checked_sub(1)?];
        let within = offset - start;
        let fits = within + bytes as u64 <= chunk.bytes;
        fits.then_some((chunk.address + within, chunk.key))
    }

    /// Address and key of the descriptors of `count` slots from `first` on.
    pub(crate) fn descriptors(&self, first: SlotId, count: u32) -> Option<(u64, u32)> {
        let offset = self.layout.descriptor_offset(first)?;
        self.find(offset, DESCRIPTOR_BYTES * count as usize)
    }

    fn holds_slots_whole(&self) -> Result<(), WireError> {
        let bytes = self.layout.block_bytes();
        let cut = |(start, _): &(u64, Chunk)| {
            // The slot in which the chunk begins, or the first one.
            let (mut low, mut high) = (0, self.layout.slots());
            while low < high {
                let middle = low + (high - low) / 2;
                let offset = self.layout.payload_offset(SlotId(middle));
                if offset.is_some_and(|offset| (offset + bytes) as u64 <= *start) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            let offset = self.layout.payload_offset(SlotId(low));
            offset.is_some_and(|offset| (offset as u64) < *start)
        };
        let first = self.layout.payload_offset(SlotId(0)).unwrap_or(0);
        let head = self.chunks.get(1).map(|(start, _)| *start);
        if head.is_some_and(|start| start < first as u64) || self.chunks.iter().skip(1).any(cut) {
            return Err(WireError::Chunks(
                "one begins within a slot or the descriptors",
            ));
        }
        Ok(())
    }
}

/// The `N` bytes from `at`; callers pass messages of fixed size, which hold them.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
