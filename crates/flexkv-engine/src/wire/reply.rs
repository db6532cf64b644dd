//! Replies: what the node answers to a request, with the request's id. Block bytes are named by
//! their offset in the arena.

use flexkv_block::{BlockKey, Checksum};
use flexkv_ports::{CacheError, PrefixHit, Removed, Ticket};

use super::{Fields, WireError, narrow, part, put_frame, put_keys, put_text};

const MATCHED: u16 = 0x8010;
const DONE: u16 = 0x8011;
const PENDING: u16 = 0x8012;
const LOADED: u16 = 0x8013;
const GRANTED: u16 = 0x8014;
const REMOVED: u16 = 0x8015;
const FAILED: u16 = 0x801f;

const GONE: u16 = 1;
const INVALID: u16 = 2;
const UNKNOWN_TICKET: u16 = 3;

/// Stands for "no slot" in a grant; no offset can be so large.
const NO_SLOT: u64 = u64::MAX;

/// A block and where it lies in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBlock {
    /// Which block.
    pub key: BlockKey,
    /// Checksum of its bytes.
    pub checksum: Checksum,
    /// Its first byte, counted from the arena's.
    pub offset: u64,
}

impl PlacedBlock {
    /// Bytes on the wire.
    pub const BYTES: usize = 32;
}

/// What the node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `Match`.
    Matched(PrefixHit),
    /// To `Load`, `Commit`, `Release` and `Watch`.
    Done,
    /// To `Poll`: still loading.
    Pending,
    /// To `Poll` and `Wait`: the load has finished.
    Loaded {
        /// How many blocks the node held itself.
        local: usize,
        /// How many came from peers.
        remote: usize,
        /// The blocks, in prompt order.
        blocks: Vec<PlacedBlock>,
    },
    /// To `Store`.
    Granted {
        /// To commit or release.
        ticket: Ticket,
        /// Per block: the offset of its slot in the arena, if it has one.
        slots: Vec<Option<u64>>,
    },
    /// To nothing, after `Watch`: blocks that the node no longer holds.
    Removed(Removed),
    /// To any request that the cache did not take.
    Failed(CacheError),
}

impl Reply {
    /// The reply's name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Matched(_) => "Matched",
            Self::Done => "Done",
            Self::Pending => "Pending",
            Self::Loaded { .. } => "Loaded",
            Self::Granted { .. } => "Granted",
            Self::Removed(_) => "Removed",
            Self::Failed(_) => "Failed",
        }
    }

    /// The ticket that this reply gives to the engine, if any.
    pub fn given(&self) -> Option<Ticket> {
        match self {
            Self::Matched(hit) => Some(hit.ticket),
            Self::Granted { ticket, .. } => Some(*ticket),
            _ => None,
        }
    }

    /// Appends the frame.
    ///
    /// # Panics
    /// If a list is so long that its frame would be over the largest.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) {
        match self {
            Self::Matched(hit) => put_frame(out, MATCHED, id, |out| {
                out.extend_from_slice(&hit.ticket.0.to_le_bytes());
                out.extend_from_slice(&narrow(hit.blocks).to_le_bytes());
                out.extend_from_slice(&narrow(hit.local).to_le_bytes());
            }),
            Self::Done => put_frame(out, DONE, id, |_| ()),
            Self::Pending => put_frame(out, PENDING, id, |_| ()),
            Self::Loaded {
                local,
                remote,
                blocks,
            } => put_frame(out, LOADED, id, |out| {
                out.extend_from_slice(&narrow(*local).to_le_bytes());
                out.extend_from_slice(&narrow(*remote).to_le_bytes());
                put_blocks(out, blocks);
            }),
            Self::Granted { ticket, slots } => put_frame(out, GRANTED, id, |out| {
                out.extend_from_slice(&ticket.0.to_le_bytes());
                out.extend_from_slice(&narrow(slots.len()).to_le_bytes());
                for slot in slots {
                    out.extend_from_slice(&slot.unwrap_or(NO_SLOT).to_le_bytes());
                }
            }),
            Self::Removed(removed) => put_frame(out, REMOVED, id, |out| {
                out.extend_from_slice(&removed.lost.to_le_bytes());
                put_keys(out, &removed.keys);
            }),
            Self::Failed(error) => put_frame(out, FAILED, id, |out| put_error(out, error)),
        }
    }

    /// Reads the body of a frame of `kind`.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
        match kind {
            MATCHED => decode_matched(body),
            DONE => Fields::new("Done", body).end(Self::Done),
            PENDING => Fields::new("Pending", body).end(Self::Pending),
            LOADED => decode_loaded(body),
            GRANTED => decode_granted(body),
            REMOVED => decode_removed(body),
            FAILED => decode_failed(body),
            _ => Err(WireError::Kind {
                kind,
                expected: "a reply",
            }),
        }
    }
}

fn put_blocks(out: &mut Vec<u8>, blocks: &[PlacedBlock]) {
    out.extend_from_slice(&narrow(blocks.len()).to_le_bytes());
    out.reserve(blocks.len() * PlacedBlock::BYTES);
    for block in blocks {
        out.extend_from_slice(&block.key.to_bytes());
        out.extend_from_slice(&block.checksum.0.to_le_bytes());
        out.extend_from_slice(&block.offset.to_le_bytes());
    }
}

fn put_error(out: &mut Vec<u8>, error: &CacheError) {
    let (code, ticket, text) = match error {
        CacheError::Gone { reason } => (GONE, 0, reason.as_str()),
        CacheError::Invalid { reason } => (INVALID, 0, reason.as_str()),
        CacheError::UnknownTicket { ticket } => (UNKNOWN_TICKET, ticket.0, ""),
    };
    out.extend_from_slice(&ticket.to_le_bytes());
    out.extend_from_slice(&code.to_le_bytes());
    put_text(out, text);
}

fn decode_matched(body: &[u8]) -> Result<Reply, WireError> {
    let mut fields = Fields::new("Matched", body);
    let hit = PrefixHit {
        ticket: Ticket(fields.u64("ticket")?),
        blocks: fields.u32("blocks")? as usize,
        local: fields.u32("local")? as usize,
    };
    fields.end(Reply::Matched(hit))
}

fn decode_loaded(body: &[u8]) -> Result<Reply, WireError> {
    let mut fields = Fields::new("Loaded", body);
    let local = fields.u32("local")? as usize;
    let remote = fields.u32("remote")? as usize;
    let blocks = fields.list("blocks", |item: &[u8; PlacedBlock::BYTES]| PlacedBlock {
        key: BlockKey::from_bytes(part(item, 0)),
        checksum: Checksum(u64::from_le_bytes(part(item, 16))),
        offset: u64::from_le_bytes(part(item, 24)),
    })?;
    fields.end(Reply::Loaded {
        local,
        remote,
        blocks,
    })
}

fn decode_granted(body: &[u8]) -> Result<Reply, WireError> {
    let mut fields = Fields::new("Granted", body);
    let ticket = Ticket(fields.u64("ticket")?);
    let slots = fields.list("slots", |item| {
        Some(u64::from_le_bytes(*item)).filter(|offset| *offset != NO_SLOT)
    })?;
    fields.end(Reply::Granted { ticket, slots })
}

fn decode_removed(body: &[u8]) -> Result<Reply, WireError> {
    let mut fields = Fields::new("Removed", body);
    let lost = fields.u64("lost")?;
    let keys = fields.keys()?;
    fields.end(Reply::Removed(Removed { keys, lost }))
}

fn decode_failed(body: &[u8]) -> Result<Reply, WireError> {
    let mut fields = Fields::new("Failed", body);
    let ticket = Ticket(fields.u64("ticket")?);
    let code = fields.u16("code")?;
    let reason = fields.text()?;
    let error = match code {
        GONE => CacheError::Gone { reason },
        INVALID => CacheError::Invalid { reason },
        UNKNOWN_TICKET => CacheError::UnknownTicket { ticket },
        _ => {
            return Err(WireError::Unknown {
                message: "Failed",
                field: "code",
                found: code.into(),
            });
        }
    };
    fields.end(Reply::Failed(error))
}
