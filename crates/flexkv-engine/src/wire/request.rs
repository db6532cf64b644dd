//! Requests: one for each call of `KvCache`. Each is answered by one reply with the same id.

use std::borrow::Cow;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_ports::{Filled, LoadLimits, Ticket};

use super::{Fields, WireError, narrow, part, put_frame, put_keys};

const MATCH: u16 = 0x0010;
const LOAD: u16 = 0x0011;
const POLL: u16 = 0x0012;
const WAIT: u16 = 0x0013;
const STORE: u16 = 0x0014;
const COMMIT: u16 = 0x0015;
const RELEASE: u16 = 0x0016;
const WATCH: u16 = 0x0017;

/// Bytes of one filled slot.
const FILLED_BYTES: usize = 12;

/// What an engine asks of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// How many leading blocks exist.
    Match {
        /// The prompt's keys.
        keys: Cow<'a, [BlockKey]>,
    },
    /// Start a load.
    Load {
        /// A match.
        ticket: Ticket,
        /// How many of its blocks.
        blocks: u32,
        /// What it may take; whole microseconds, those to compute a block at most 2^32 - 1.
        limits: LoadLimits,
    },
    /// How far a load is.
    Poll {
        /// The match whose load it is.
        ticket: Ticket,
    },
    /// Answer when a load has finished.
    Wait {
        /// The match whose load it is.
        ticket: Ticket,
    },
    /// Ask for slots.
    Store {
        /// The prompt's keys.
        keys: Cow<'a, [BlockKey]>,
        /// The first key to store.
        first: u32,
    },
    /// Make filled slots blocks.
    Commit {
        /// A grant.
        ticket: Ticket,
        /// Its slots that are filled.
        filled: Cow<'a, [Filled]>,
    },
    /// Give up a match or grant.
    Release {
        /// Which.
        ticket: Ticket,
    },
    /// Tell from now on which blocks the node no longer holds.
    Watch,
}

impl Request<'_> {
    /// The request's name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Match { .. } => "Match",
            Self::Load { .. } => "Load",
            Self::Poll { .. } => "Poll",
            Self::Wait { .. } => "Wait",
            Self::Store { .. } => "Store",
            Self::Commit { .. } => "Commit",
            Self::Release { .. } => "Release",
            Self::Watch => "Watch",
        }
    }

    /// Appends the frame.
    ///
    /// # Panics
    /// If a list is so long that its frame would be over the largest.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) {
        match self {
            Self::Match { keys } => put_frame(out, MATCH, id, |out| put_keys(out, keys)),
            Self::Load {
                ticket,
                blocks,
                limits,
            } => put_frame(out, LOAD, id, |out| {
                let micros = u64::try_from(limits.deadline.as_micros()).unwrap_or(u64::MAX);
                put_ticket(out, *ticket);
                out.extend_from_slice(&blocks.to_le_bytes());
                out.extend_from_slice(&recompute_micros(limits).to_le_bytes());
                out.extend_from_slice(&micros.to_le_bytes());
            }),
            Self::Poll { ticket } => put_frame(out, POLL, id, |out| put_ticket(out, *ticket)),
            Self::Wait { ticket } => put_frame(out, WAIT, id, |out| put_ticket(out, *ticket)),
            Self::Store { keys, first } => put_frame(out, STORE, id, |out| {
                out.extend_from_slice(&first.to_le_bytes());
                put_keys(out, keys);
            }),
            Self::Commit { ticket, filled } => put_frame(out, COMMIT, id, |out| {
                put_ticket(out, *ticket);
                put_filled(out, filled);
            }),
            Self::Release { ticket } => put_frame(out, RELEASE, id, |out| put_ticket(out, *ticket)),
            Self::Watch => put_frame(out, WATCH, id, |_| ()),
        }
    }

    /// Reads the body of a frame of `kind`.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Request<'static>, WireError> {
        match kind {
            MATCH => {
                let mut fields = Fields::new("Match", body);
                let keys = fields.keys()?.into();
                fields.end(Request::Match { keys })
            }
            LOAD => decode_load(body),
            POLL => ticket_only("Poll", body).map(|ticket| Request::Poll { ticket }),
            WAIT => ticket_only("Wait", body).map(|ticket| Request::Wait { ticket }),
            STORE => {
                let mut fields = Fields::new("Store", body);
                let first = fields.u32("first")?;
                let keys = fields.keys()?.into();
                fields.end(Request::Store { keys, first })
            }
            COMMIT => decode_commit(body),
            RELEASE => ticket_only("Release", body).map(|ticket| Request::Release { ticket }),
            WATCH => Fields::new("Watch", body).end(Request::Watch),
            _ => Err(WireError::Kind {
                kind,
                expected: "a request",
            }),
        }
    }
}

fn put_ticket(out: &mut Vec<u8>, ticket: Ticket) {
    out.extend_from_slice(&ticket.0.to_le_bytes());
}

/// Microseconds to compute a block; 0 if that is not known.
fn recompute_micros(limits: &LoadLimits) -> u32 {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
    limits.recompute.map_or(0, micros)
}

fn put_filled(out: &mut Vec<u8>, filled: &[Filled]) {
    out.extend_from_slice(&narrow(filled.len()).to_le_bytes());
    for slot in filled {
        out.extend_from_slice(&narrow(slot.index).to_le_bytes());
        out.extend_from_slice(&slot.checksum.0.to_le_bytes());
    }
}

fn ticket_only(message: &'static str, body: &[u8]) -> Result<Ticket, WireError> {
    let mut fields = Fields::new(message, body);
    let ticket = Ticket(fields.u64("ticket")?);
    fields.end(ticket)
}

fn decode_load(body: &[u8]) -> Result<Request<'static>, WireError> {
    let mut fields = Fields::new("Load", body);
    let ticket = Ticket(fields.u64("ticket")?);
    let blocks = fields.u32("blocks")?;
    let recompute = u64::from(fields.u32("recompute")?);
    let limits = LoadLimits {
        deadline: Duration::from_micros(fields.u64("deadline")?),
        recompute: (recompute > 0).then(|| Duration::from_micros(recompute)),
    };
    fields.end(Request::Load {
        ticket,
        blocks,
        limits,
    })
}

fn decode_commit(body: &[u8]) -> Result<Request<'static>, WireError> {
    let mut fields = Fields::new("Commit", body);
    let ticket = Ticket(fields.u64("ticket")?);
    let filled = fields.list("filled", |item: &[u8; FILLED_BYTES]| Filled {
        index: u32::from_le_bytes(part(item, 0)) as usize,
        checksum: Checksum(u64::from_le_bytes(part(item, 4))),
    })?;
    fields.end(Request::Commit {
        ticket,
        filled: filled.into(),
    })
}
