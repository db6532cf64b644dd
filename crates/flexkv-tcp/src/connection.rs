//! One connection of a reader: opened with a handshake, then pieces of batches, two in flight.
//!
//! Any error leaves the connection useless; its owner drops it. Verification happens here, window
//! by window, while the bytes are in cache. Knows nothing of back-off or of other connections.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use flexkv_block::{Checksum, FrameHeader};
use flexkv_handshake::{Asking, Credential, GreetError, Terms, VERDICT_BYTES, WELCOME_BYTES};
use flexkv_ports::{FetchOutcome, MemorySlice, Want};
use thiserror::Error;

use crate::batch::{Batch, Part, Piece};
use crate::deadline::{self, Timed};
use crate::foreign::{self, Cursor};
use crate::wire::{
    ANSWER_BYTES, Answer, Entry, RESPONSE_BYTES, Request, RequestKind, Response, WireError,
};

/// Pieces requested before the first of them is read: hides the round trip between two pieces.
const DEPTH: usize = 2;
/// Bytes received, then hashed, at a time: they are still in cache.
const WINDOW: usize = 256 << 10;
/// Bytes copied out of a slot at a time to be hashed.
const HASH_PIECE: usize = 4096;

/// Why a connection could not be opened or had to be closed.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// The owner refused the handshake, or does not know the secret.
    #[error(transparent)]
    Greet(#[from] GreetError),
    /// The socket failed, ended, or a deadline passed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A block is sent with another length than asked for.
    #[error("the owner sends a block of {found} bytes for a slot of {slot}")]
    Length {
        /// The announced length.
        found: u32,
        /// Bytes of the slot.
        slot: usize,
    },
    /// All request numbers are used up.
    #[error("the connection has no request numbers left")]
    Numbers,
    /// The owner allows no request of this size.
    #[error("the owner refuses a request for {0} blocks")]
    Oversized(u32),
    /// The owner does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl LinkError {
    /// Whether a deadline passed.
    pub(crate) fn timed_out(&self) -> bool {
        matches!(self, Self::Io(error) if deadline::timed_out(error))
    }
}

/// An open connection.
pub(crate) struct Connection {
    stream: Arc<TcpStream>,
    last_id: u32,
    /// The last request whose payloads were read.
    read: u32,
    /// Whether the owner holds blocks of requests up to `read` that it was not told about.
    owes_release: bool,
    /// Whether an answer has come since the last batch was begun.
    answered: bool,
    buffer: Vec<u8>,
}

/// A piece and the number of its request.
struct Requested {
    id: u32,
    piece: Piece,
}

impl Connection {
    /// Connects and shakes hands until `until`.
    pub(crate) fn open(
        address: SocketAddr,
        credential: &Credential,
        terms: Terms,
        until: Instant,
    ) -> Result<Self, LinkError> {
        let stream = TcpStream::connect_timeout(&address, deadline::left(until)?)?;
        stream.set_nodelay(true)?;
        let (asking, opening) = Asking::begin(credential, terms)?;
        let mut writing = Timed::writing(&stream, until);
        writing.write_all(&opening)?;
        let mut reading = Timed::reading(&stream, until);
        let mut welcome = [0; WELCOME_BYTES];
        reading.read_exact(&mut welcome)?;
        let mut rest = vec![0; asking.follows(&welcome)?];
        reading.read_exact(&mut rest)?;
        let (proving, confirm) = asking.confirm(&welcome, &rest)?;
        writing.write_all(&confirm)?;
        let mut verdict = [0; VERDICT_BYTES];
        reading.read_exact(&mut verdict)?;
        proving.accepted(&verdict)?;
        Ok(Self {
            stream: Arc::new(stream),
            last_id: 0,
            read: 0,
            owes_release: false,
            answered: false,
            buffer: Vec::new(),
        })
    }

    /// The socket, so that another thread can shut it down.
    pub(crate) fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// Whether the idle connection is still open and silent, as it must be.
    pub(crate) fn is_alive(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&*self.stream, &mut [0u8; 1], flags);
        peeked.is_err_and(|error| error == rustix::io::Errno::AGAIN)
    }

    /// Whether the owner answered while the last batch was worked on.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// Fetches pieces of the batch until none is left to take.
    pub(crate) fn work(&mut self, batch: &Arc<Batch>, connections: usize) -> Result<(), LinkError> {
        self.answered = false;
        let until = batch.until();
        let mut requested = VecDeque::with_capacity(DEPTH);
        loop {
            while requested.len() < DEPTH
                && let Some(piece) = batch.take(connections)
            {
                let id = self.request(&piece, until)?;
                requested.push_back(Requested { id, piece });
            }
            let Some(first) = requested.front_mut() else {
                break;
            };
            self.receive(first, until)?;
            requested.pop_front();
        }
        self.release(until)
    }

    fn request(&mut self, piece: &Piece, until: Instant) -> Result<u32, LinkError> {
        self.last_id = self.last_id.checked_add(1).ok_or(LinkError::Numbers)?;
        self.send(RequestKind::Fetch, &piece.parts, until)?;
        Ok(self.last_id)
    }

    /// Tells the owner that its blocks were read, if it waits for that.
    fn release(&mut self, until: Instant) -> Result<(), LinkError> {
        if self.owes_release {
            self.send(RequestKind::Release, &[], until)?;
        }
        Ok(())
    }

    fn send(&mut self, kind: RequestKind, parts: &[Part], until: Instant) -> Result<(), LinkError> {
        let patience = deadline::left(until)?.as_millis();
        let request = Request {
            kind,
            id: self.last_id,
            count: parts.len() as u32,
            released: self.read,
            patience_ms: u32::try_from(patience).unwrap_or(u32::MAX).max(1),
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&request.encode());
        for Part { want, .. } in parts {
            let entry = Entry {
                location: want.location.to_word(),
                key: want.key,
            };
            self.buffer.extend_from_slice(&entry.encode());
        }
        Timed::writing(&self.stream, until).write_all(&self.buffer)?;
        self.owes_release = false;
        Ok(())
    }

    fn receive(&mut self, requested: &mut Requested, until: Instant) -> Result<(), LinkError> {
        let Requested { id, piece } = requested;
        let parts = &mut piece.parts;
        let mut reading = Timed::reading(&self.stream, until);
        let count = parts.len();
        self.buffer.resize(RESPONSE_BYTES + ANSWER_BYTES * count, 0);
        let held = receive_head(&mut reading, &mut self.buffer, *id, count as u32)?;
        self.answered = true;
        let found = read_answers(&self.buffer[RESPONSE_BYTES..], parts)?;
        receive_payloads(&mut reading, parts, &found)?;
        self.read = *id;
        self.owes_release |= held;
        Ok(())
    }
}

/// Fills `buffer` with the response to a request of `count` blocks and its answers; whether the owner
/// holds the blocks.
fn receive_head(
    reading: &mut Timed<'_>,
    buffer: &mut [u8],
    id: u32,
    count: u32,
) -> Result<bool, LinkError> {
    let mut held = None;
    let mut at = 0;
    while at < buffer.len() {
        at += reading.call(|mut stream| stream.read(&mut buffer[at..]))?;
        if held.is_none()
            && at >= RESPONSE_BYTES
            && let Some(head) = buffer.first_chunk()
        {
            let response = Response::decode(head, id, count)?;
            // Such an owner sends nothing else.
            if response.oversized {
                return Err(LinkError::Oversized(response.count));
            }
            held = Some(response.held);
        }
    }
    Ok(held.unwrap_or_default())
}

/// A block whose payload comes, and its place in the piece.
type Found = (usize, FrameHeader);

/// Reads the answers of a piece: notes the stale blocks, returns those whose payloads follow.
fn read_answers(bytes: &[u8], parts: &mut [Part]) -> Result<Vec<Found>, LinkError> {
    let mut found = Vec::with_capacity(parts.len());
    let (answers, _) = bytes.as_chunks();
    for (place, (part, answer)) in parts.iter_mut().zip(answers).enumerate() {
        match Answer::decode(answer)? {
            Answer::Stale => part.outcome = FetchOutcome::Stale,
            Answer::Found(header) => {
                let slot = part.want.into.bytes().len();
                if header.length as usize != slot {
                    part.outcome = FetchOutcome::Corrupt;
                    return Err(LinkError::Length {
                        found: header.length,
                        slot,
                    });
                }
                found.push((place, header));
            }
        }
    }
    Ok(found)
}

/// Receives the payloads straight into their slots and verifies each.
fn receive_payloads(
    reading: &mut Timed<'_>,
    parts: &mut [Part],
    found: &[Found],
) -> Result<(), LinkError> {
    let mut outcomes = Vec::with_capacity(found.len());
    let slots = found
        .iter()
        .map(|(place, _)| parts[*place].want.into.bytes());
    let slots: Vec<_> = slots.collect();
    let mut cursor = Cursor::new(slots.clone());
    let mut sum = Checksum::stream();
    let mut result = Ok(());
    while !cursor.is_done() {
        let spans = cursor.window(WINDOW);
        match reading.call(|stream| foreign::receive(stream, &spans)) {
            Ok(bytes) => cursor.advance(bytes, |block, range| {
                let last = range.end == slots[block].len();
                each_piece(slots[block], range, |piece| sum.update(piece));
                if last {
                    let (place, header) = &found[block];
                    let sum = std::mem::replace(&mut sum, Checksum::stream());
                    outcomes.push((*place, verdict(&parts[*place].want, header, sum.finish())));
                }
            }),
            Err(error) => {
                result = Err(error.into());
                break;
            }
        }
    }
    for (place, outcome) in outcomes {
        parts[place].outcome = outcome;
    }
    result
}

/// Calls `each` with copies of successive bytes of a range of `slot`, small enough for L1. Hashing
/// the slot itself would take a reference to memory that other processes can write, and saves
/// next to nothing.
fn each_piece(slot: &MemorySlice, range: Range<usize>, mut each: impl FnMut(&[u8])) {
    let mut piece = [0u8; HASH_PIECE];
    for at in range.clone().step_by(HASH_PIECE) {
        let piece = &mut piece[..HASH_PIECE.min(range.end - at)];
        slot.read(at, piece);
        each(piece);
    }
}

/// Whether the block that arrived is the one wanted.
fn verdict(want: &Want, header: &FrameHeader, sum: Checksum) -> FetchOutcome {
    let same = header.key == want.key && header.location == want.location;
    if same && header.checksum == sum {
        FetchOutcome::Fetched(sum)
    } else {
        FetchOutcome::Corrupt
    }
}
