//! The bytes on disk, version 1. All numbers are little-endian; every structure carries an XXH3-64
//! of its own bytes. Knows nothing of files: text comes in and goes out as bytes.
//! docs/protocol.md has them byte by byte.

use flexkv_block::{
    BlockKey, Checksum, FrameHeader, Generation, Location, NamespaceId, SlotId, Tier,
};
use flexkv_block::{BlockLayout, FRAME_HEADER_BYTES};
use twox_hash::XxHash3_64;

/// Unit of everything in a segment.
pub const PAGE: usize = 4096;
/// Bytes of a journal's header and of each of its records.
pub const RECORD_BYTES: usize = 64;
/// Version written and read here.
const VERSION: u16 = 1;
const SEGMENT_MAGIC: [u8; 4] = *b"FKVS";
const JOURNAL_MAGIC: [u8; 4] = *b"FKVJ";
/// Bytes of a frame page that its second checksum covers.
const FRAME_COVERED: usize = 96;
/// Bytes of a frame page that are used; all others are 0.
const FRAME_BYTES: usize = FRAME_COVERED + 8;

/// How a directory's slots are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Whose blocks these are.
    pub namespace: NamespaceId,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Slots of a full segment.
    pub per_segment: u32,
}

impl Geometry {
    /// The geometry whose segments have at most `segment_bytes` bytes, or one slot.
    pub fn new(namespace: NamespaceId, block_bytes: usize, segment_bytes: u64) -> Self {
        let mut it = Self {
            namespace,
            block_bytes,
            per_segment: 1,
        };
        let fit = segment_bytes.saturating_sub(PAGE as u64) / it.stride();
        it.per_segment = u32::try_from(fit).unwrap_or(u32::MAX).max(1);
        it
    }

    /// Bytes from one slot to the next.
    pub fn stride(&self) -> u64 {
        (PAGE + self.block_bytes.next_multiple_of(PAGE)) as u64
    }

    /// Bytes of a segment of `slots` slots.
    pub fn segment_bytes(&self, slots: u32) -> u64 {
        PAGE as u64 + u64::from(slots) * self.stride()
    }

    /// The segment of a slot, and where in it the slot's frame page begins.
    pub fn place(&self, slot: u32) -> (usize, u64) {
        let segment = (slot / self.per_segment) as usize;
        let at = PAGE as u64 + u64::from(slot % self.per_segment) * self.stride();
        (segment, at)
    }
}

/// The page at the start of a segment.
pub fn segment_page(geometry: &Geometry, epoch: u64, number: u32, slots: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[0..4].copy_from_slice(&SEGMENT_MAGIC);
    page[4..6].copy_from_slice(&VERSION.to_le_bytes());
    page[8..16].copy_from_slice(&epoch.to_le_bytes());
    page[16..32].copy_from_slice(&geometry.namespace.as_u128().to_le_bytes());
    page[32..40].copy_from_slice(&(geometry.block_bytes as u64).to_le_bytes());
    page[40..44].copy_from_slice(&number.to_le_bytes());
    page[44..48].copy_from_slice(&slots.to_le_bytes());
    page[48..52].copy_from_slice(&geometry.per_segment.to_le_bytes());
    let sum = XxHash3_64::oneshot(&page[..56]);
    page[56..64].copy_from_slice(&sum.to_le_bytes());
    page
}

/// The epoch in a segment's first page, if the page is that of segment `number` of this geometry.
pub fn segment_epoch(page: &[u8], geometry: &Geometry, number: u32) -> Option<u64> {
    let epoch = u64::from_le_bytes(take(page, 8)?);
    let slots = u32::from_le_bytes(take(page, 44)?);
    (page.get(..PAGE)? == segment_page(geometry, epoch, number, slots)).then_some(epoch)
}

/// What a slot holds, as told by its frame page or by a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number within the directory.
    pub slot: u32,
    /// How often the slot was filled.
    pub generation: Generation,
    /// Which block it is.
    pub key: BlockKey,
    /// The block before it in its prompt.
    pub parent: Option<BlockKey>,
    /// Of the block's bytes.
    pub checksum: Checksum,
}

/// The page before a block's bytes.
pub fn frame_page(held: &Held, geometry: &Geometry, epoch: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[..FRAME_BYTES].copy_from_slice(&frame(held, geometry, epoch));
    page
}

/// The part of a frame page that is not 0.
fn frame(held: &Held, geometry: &Geometry, epoch: u64) -> [u8; FRAME_BYTES] {
    let header = FrameHeader {
        key: held.key,
        location: Location {
            tier: Tier::Ssd,
            slot: SlotId(held.slot),
            generation: held.generation,
        },
        length: geometry.block_bytes as u32,
        checksum: held.checksum,
    };
    let mut frame = [0; FRAME_BYTES];
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    frame[64..72].copy_from_slice(&epoch.to_le_bytes());
    if let Some(parent) = held.parent {
        frame[72..88].copy_from_slice(&parent.to_bytes());
        frame[88] = 1;
    }
    let sum = XxHash3_64::oneshot(&frame[..FRAME_COVERED]);
    frame[FRAME_COVERED..].copy_from_slice(&sum.to_le_bytes());
    frame
}

/// What the frame page of slot `slot` tells, unless it is damaged or of another life.
pub fn read_frame_page(page: &[u8], slot: u32, geometry: &Geometry, epoch: u64) -> Option<Held> {
    let sum = u64::from_le_bytes(take(page, FRAME_COVERED)?);
    if XxHash3_64::oneshot(&page[..FRAME_COVERED]) != sum {
        return None;
    }
    let header = FrameHeader::decode(page).ok()?;
    let held = Held {
        slot,
        generation: header.location.generation,
        key: header.key,
        parent: parent(page, 72, page[88] == 1)?,
        checksum: header.checksum,
    };
    // Everything else has one right value.
    let (used, reserved) = page.get(..PAGE)?.split_at(FRAME_BYTES);
    let right = used == frame(&held, geometry, epoch) && reserved.iter().all(|byte| *byte == 0);
    right.then_some(held)
}

/// One line of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The slot holds this block from now on.
    Held(Held),
    /// What the slot held in this generation is gone.
    Freed {
        /// The slot's number.
        slot: u32,
        /// What it held.
        generation: Generation,
    },
    /// Nothing was changed after this.
    Closed,
}

const HELD: u16 = 1;
const FREED: u16 = 2;
const CLOSED: u16 = 3;

impl Record {
    /// The record's bytes.
    pub fn encode(&self, epoch: u64) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        match self {
            Self::Held(held) => {
                out[0..2].copy_from_slice(&HELD.to_le_bytes());
                out[4..8].copy_from_slice(&held.slot.to_le_bytes());
                out[8..12].copy_from_slice(&held.generation.get().to_le_bytes());
                out[16..32].copy_from_slice(&held.key.to_bytes());
                if let Some(parent) = held.parent {
                    out[2] = 1;
                    out[32..48].copy_from_slice(&parent.to_bytes());
                }
                out[48..56].copy_from_slice(&held.checksum.0.to_le_bytes());
            }
            Self::Freed { slot, generation } => {
                out[0..2].copy_from_slice(&FREED.to_le_bytes());
                out[4..8].copy_from_slice(&slot.to_le_bytes());
                out[8..12].copy_from_slice(&generation.get().to_le_bytes());
            }
            Self::Closed => out[0..2].copy_from_slice(&CLOSED.to_le_bytes()),
        }
        let sum = sum(&out[..56], epoch);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a record of the journal of `epoch`; `None` if it is none.
    pub fn decode(bytes: &[u8; RECORD_BYTES], epoch: u64) -> Option<Self> {
        let slot = u32::from_le_bytes(take(bytes, 4)?);
        let generation = Generation::new(u32::from_le_bytes(take(bytes, 8)?));
        let record = match u16::from_le_bytes(take(bytes, 0)?) {
            HELD => Self::Held(Held {
                slot,
                generation: generation?,
                key: BlockKey::from_bytes(take(bytes, 16)?),
                parent: parent(bytes, 32, bytes[2] == 1)?,
                checksum: Checksum(u64::from_le_bytes(take(bytes, 48)?)),
            }),
            FREED => Self::Freed {
                slot,
                generation: generation?,
            },
            CLOSED => Self::Closed,
            _ => return None,
        };
        (*bytes == record.encode(epoch)).then_some(record)
    }
}

/// The first bytes of a journal.
pub fn journal_header(epoch: u64, boot: [u8; 16]) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    out[0..4].copy_from_slice(&JOURNAL_MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&epoch.to_le_bytes());
    out[16..32].copy_from_slice(&boot);
    let sum = XxHash3_64::oneshot(&out[..56]);
    out[56..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Epoch and boot id in a journal's header.
pub fn read_journal_header(bytes: &[u8]) -> Option<(u64, [u8; 16])> {
    let epoch = u64::from_le_bytes(take(bytes, 8)?);
    let boot = take(bytes, 16)?;
    (bytes.get(..RECORD_BYTES)? == journal_header(epoch, boot)).then_some((epoch, boot))
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalText {
    /// The start of the machine that it was begun in.
    pub boot: [u8; 16],
    /// What each slot holds, by slot.
    pub held: Vec<Held>,
    /// Whether its last record says that nothing was changed after it.
    pub closed: bool,
}

/// Reads the journal of `epoch` of a directory of `slots` slots; `None` if it is of another epoch, or
/// a whole record is none. A last record that is cut short does not count.
pub fn read_journal(bytes: &[u8], epoch: u64, slots: u32) -> Option<JournalText> {
    let (found, boot) = read_journal_header(bytes)?;
    if found != epoch {
        return None;
    }
    let mut held: Vec<Option<Held>> = vec![None; slots as usize];
    let mut closed = false;
    let (records, _) = bytes.get(RECORD_BYTES..)?.as_chunks::<RECORD_BYTES>();
    for record in records {
        closed = false;
        match Record::decode(record, epoch)? {
            // Slots of a time when the directory's share was larger are passed over.
            Record::Held(it) => {
                if let Some(slot) = held.get_mut(it.slot as usize) {
                    *slot = Some(it);
                }
            }
            Record::Freed { slot, generation } => {
                if let Some(slot) = held.get_mut(slot as usize)
                    && slot.is_some_and(|it| it.generation == generation)
                {
                    *slot = None;
                }
            }
            Record::Closed => closed = true,
        }
    }
    Some(JournalText {
        boot,
        held: held.into_iter().flatten().collect(),
        closed,
    })
}

/// `Some(None)` if there is no parent; the caller compares the whole structure afterwards.
#[expect(
    clippy::option_option,
    reason = "outer: whether it could be read, inner: whether there is one"
)]
fn parent(bytes: &[u8], at: usize, there: bool) -> Option<Option<BlockKey>> {
    let key = BlockKey::from_bytes(take(bytes, at)?);
    Some(there.then_some(key))
}

/// The checksum of everything here: that of a record has the epoch as seed, all others 0.
pub fn sum(bytes: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Whether blocks of this size can be kept.
pub fn fits(block_bytes: usize) -> bool {
    block_bytes > 0 && block_bytes as u64 <= BlockLayout::MAX_BLOCK_BYTES
}

#[cfg(test)]
mod tests;
