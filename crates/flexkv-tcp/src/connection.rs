//! One connection of a reader: opened with a handshake, then pieces of batches, one or two in
//! flight.
//!
//! Any error leaves the connection useless; its owner drops it. Verification happens here, window
//! by window, while the bytes are in cache. Knows nothing of back-off or of other connections.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use flexkv_block::{BlockKey, Checksum, FrameHeader, Location};
use flexkv_handshake::{Asking, Credential, GreetError, Terms, VERDICT_BYTES, WELCOME_BYTES};
use flexkv_ports::{FetchOutcome, RunningChecksum, Suspect, Want};
use thiserror::Error;

use crate::batch::{Batch, Part, Piece};
use crate::deadline::{self, Timed};
use crate::foreign::Cursor;
use crate::line::Line;
use crate::set_up::{is_on_host, set_up};
use crate::stay::{self, Cores, Stay};
use crate::tls::Tls;
use crate::wire::{
    ANSWER_BYTES, Answer, Entry, MAX_COUNT, RESPONSE_BYTES, Request, RequestKind, Response,
    WireError,
};

/// Pieces requested before the first of them is read: hides the round trip between two pieces. A thread
/// that shares a core with the owner's would only take more than its part.
const DEPTH: usize = 2;
/// Bytes asked for in one turn with a batch, while other batches wait.
const TURN: usize = 8 << 20;
/// Bytes received, then hashed, at a time: they are still in cache.
const WINDOW: usize = 256 << 10;

/// Why a connection could not be opened or had to be closed.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// The owner refused the handshake, or does not know the secret.
    #[error(transparent)]
    Greet(#[from] GreetError),
    /// The socket failed, ended, or a deadline passed.
    #[error(transparent)]
    Io(io::Error),
    /// There is no agreement on certificates, or what came is not what the owner sent.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
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

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(error) => Self::Tls(error),
            Err(error) => Self::Io(error),
        }
    }
}

impl LinkError {
    /// Whether it says that reader and owner do not agree, which will not change by itself.
    pub(crate) fn is_disagreement(&self) -> bool {
        matches!(
            self,
            Self::Tls(_) | Self::Greet(GreetError::Refused { .. } | GreetError::Impostor)
        )
    }

    /// Whether a deadline passed.
    pub(crate) fn timed_out(&self) -> bool {
        matches!(self, Self::Io(error) if deadline::timed_out(error))
    }
}

/// An open connection.
pub(crate) struct Connection {
    line: Line,
    /// Whether its two threads are to run on one core.
    together: bool,
    /// When the last answer was complete.
    fetched: Option<Instant>,
    last_id: u32,
    /// The last request whose payloads were read.
    read: u32,
    /// Whether the owner holds blocks of requests up to `read` that it was not told about.
    owes_release: bool,
    /// Whether an answer has come since the last batch was begun.
    answered: bool,
    buffer: Vec<u8>,
}

/// A piece that was asked for, and what has arrived of its answer.
pub(crate) struct Requested {
    id: u32,
    piece: Piece,
    /// The response and its answers, of which the first `at` bytes are there.
    head: Vec<u8>,
    at: usize,
    held: bool,
    /// The blocks whose payloads come; none before the answers are there.
    found: Option<Vec<Found>>,
    /// Bytes of payload that have arrived.
    moved: usize,
    /// The checksum of the block under way, of which some bytes are there.
    sum: Option<RunningChecksum>,
}

impl Requested {
    fn new(id: u32, piece: Piece) -> Self {
        Self {
            id,
            head: vec![0; RESPONSE_BYTES + ANSWER_BYTES * piece.parts.len()],
            piece,
            at: 0,
            held: false,
            found: None,
            moved: 0,
            sum: None,
        }
    }

    /// When the answer is due.
    pub(crate) fn until(&self) -> Instant {
        self.piece.until()
    }
}

impl Connection {
    /// Connects and shakes hands until `until`.
    pub(crate) fn open(
        address: SocketAddr,
        tls: Option<&Tls>,
        credential: &Credential,
        terms: Terms,
        until: Instant,
    ) -> Result<Self, LinkError> {
        let stream = Arc::new(TcpStream::connect_timeout(
            &address,
            deadline::left(until)?,
        )?);
        set_up(&stream)?;
        let mut writing = Timed::writing(&stream, until);
        let mut reading = Timed::reading(&stream, until);
        let mut line = match tls {
            None => Line::plain(stream.clone()),
            Some(tls) => {
                let session = tls.to_owner(address.ip()).map_err(LinkError::Tls)?;
                Line::secured(stream.clone(), session, &mut reading, &mut writing)?
            }
        };
        let (asking, opening) = Asking::begin(credential, terms)?;
        line.write_all(&mut writing, &opening)?;
        let mut welcome = [0; WELCOME_BYTES];
        line.read_exact(&mut reading, &mut welcome)?;
        let mut rest = vec![0; asking.follows(&welcome)?];
        line.read_exact(&mut reading, &mut rest)?;
        let (proving, confirm) = asking.confirm(&welcome, &rest)?;
        line.write_all(&mut writing, &confirm)?;
        let mut verdict = [0; VERDICT_BYTES];
        line.read_exact(&mut reading, &mut verdict)?;
        proving.accepted(&verdict)?;
        Ok(Self {
            together: tls.is_none() && is_on_host(&stream),
            fetched: None,
            line,
            last_id: 0,
            read: 0,
            owes_release: false,
            answered: false,
            buffer: Vec::new(),
        })
    }

    /// The socket, so that another thread can shut it down.
    pub(crate) fn stream(&self) -> &Arc<TcpStream> {
        self.line.stream()
    }

    /// Whether the idle connection is still open and silent, as it must be.
    pub(crate) fn is_alive(&self) -> bool {
        self.line.is_alive()
    }

    /// Whether the owner answered while the last batch was worked on.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// Fetches pieces of the batch until none is left to take, or until its turn is over: `others` says
    /// whether other batches wait.
    pub(crate) fn work(
        &mut self,
        batch: &Arc<Batch>,
        connections: usize,
        cores: &Cores,
        others: impl Fn() -> bool,
    ) -> Result<(), LinkError> {
        self.answered = false;
        // A piece alone had better have a core at each end.
        let together = self.together && batch.width(connections) > 1;
        let mut stay = None;
        let until = batch.until();
        let mut requested = VecDeque::with_capacity(DEPTH);
        let mut asked = 0;
        loop {
            if together && stay.is_none() {
                stay = cores.stay();
            }
            let beside = stay.is_some() && stay::is_beside(self.line.stream());
            let depth = if beside { 1 } else { DEPTH };
            while requested.len() < depth
                && !(asked >= TURN && others())
                && let Some(piece) = batch.take(connections)
            {
                asked += piece.bytes();
                requested.push_back(self.request(piece)?);
            }
            let Some(first) = requested.front_mut() else {
                break;
            };
            self.receive(first, until)?;
            requested.pop_front();
        }
        self.release(until)
    }

    /// Fetches a batch of one piece, unless that takes longer than until `handed_over`: then what is
    /// under way is given back, to be finished by another thread.
    pub(crate) fn work_briefly(
        &mut self,
        batch: &Arc<Batch>,
        handed_over: Instant,
    ) -> Result<Option<Requested>, LinkError> {
        self.answered = false;
        let Some(piece) = batch.take(1) else {
            return Ok(None);
        };
        let mut requested = self.request(piece)?;
        let stream = self.line.stream().clone();
        let until = handed_over.min(batch.until());
        // The owner's thread then runs as soon as this one sleeps.
        let beside = self.is_followed() && stay::is_beside(&stream);
        let _stay = beside.then(Stay::here);
        let mut reading = Timed::reading_briefly(&stream, until, !beside);
        match self.receive_with(&mut requested, &mut reading) {
            Err(error) if error.timed_out() => Ok(Some(requested)),
            Err(error) => Err(error),
            Ok(()) => self.release(batch.until()).map(|()| None),
        }
    }

    /// Finishes what [`work_briefly`](Self::work_briefly) began.
    pub(crate) fn finish(&mut self, mut requested: Requested) -> Result<(), LinkError> {
        let until = requested.until();
        self.receive(&mut requested, until)?;
        self.release(until)
    }

    /// Whether the owner's thread may still be where it was when the last answer came.
    fn is_followed(&self) -> bool {
        let fetched = self.fetched.filter(|_| self.together);
        fetched.is_some_and(|fetched| fetched.elapsed() < stay::PATIENCE / 2)
    }

    fn request(&mut self, piece: Piece) -> Result<Requested, LinkError> {
        self.last_id = self.last_id.checked_add(1).ok_or(LinkError::Numbers)?;
        let wants = piece.parts.iter().map(|part| &part.want);
        let entries = wants.map(|want| (want.location, want.key));
        self.send(RequestKind::Fetch, entries, piece.until())?;
        Ok(Requested::new(self.last_id, piece))
    }

    /// Tells the owner that its blocks were read, if it waits for that.
    fn release(&mut self, until: Instant) -> Result<(), LinkError> {
        if self.owes_release {
            self.send(RequestKind::Release, std::iter::empty(), until)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        kind: RequestKind,
        entries: impl ExactSizeIterator<Item = (Location, BlockKey)>,
        until: Instant,
    ) -> Result<(), LinkError> {
        let patience = deadline::left(until)?.as_millis();
        let request = Request {
            kind,
            id: self.last_id,
            count: entries.len() as u32,
            released: self.read,
            patience_ms: u32::try_from(patience).unwrap_or(u32::MAX).max(1),
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&request.encode());
        for (location, key) in entries {
            let location = location.to_word();
            let entry = Entry { location, key };
            self.buffer.extend_from_slice(&entry.encode());
        }
        let stream = self.line.stream().clone();
        let mut writing = Timed::writing(&stream, until);
        self.line.write_all(&mut writing, &self.buffer)?;
        self.owes_release = false;
        Ok(())
    }

    /// Tells the owner of blocks that arrived damaged.
    pub(crate) fn report(&mut self, suspects: &[Suspect], until: Instant) -> Result<(), LinkError> {
        for some in suspects.chunks(MAX_COUNT as usize) {
            let entries = some.iter().map(|suspect| (suspect.location, suspect.key));
            self.send(RequestKind::Report, entries, until)?;
        }
        Ok(())
    }

    fn receive(&mut self, requested: &mut Requested, until: Instant) -> Result<(), LinkError> {
        let stream = self.line.stream().clone();
        self.receive_with(requested, &mut Timed::reading(&stream, until))
    }

    /// Receives what is missing of an answer. After an error `requested` holds what has arrived.
    fn receive_with(
        &mut self,
        requested: &mut Requested,
        reading: &mut Timed<'_>,
    ) -> Result<(), LinkError> {
        while requested.at < requested.head.len() {
            let rest = &mut requested.head[requested.at..];
            let began = requested.at >= RESPONSE_BYTES;
            requested.at += self.line.read(reading, rest)?;
            if !began && requested.at >= RESPONSE_BYTES {
                requested.held = check_response(requested)?;
                self.answered = true;
            }
        }
        if requested.found.is_none() {
            let answers = &requested.head[RESPONSE_BYTES..];
            requested.found = Some(read_answers(answers, &mut requested.piece.parts)?);
        }
        receive_payloads(&mut self.line, reading, requested)?;
        self.fetched = Some(deadline::now());
        self.read = requested.id;
        self.owes_release |= requested.held;
        Ok(())
    }
}

/// Reads the response at the head of an answer; whether the owner holds the blocks.
fn check_response(requested: &Requested) -> Result<bool, LinkError> {
    let Some(head) = requested.head.first_chunk() else {
        return Ok(false);
    };
    let count = requested.piece.parts.len() as u32;
    let response = Response::decode(head, requested.id, count)?;
    // Such an owner sends nothing else.
    if response.oversized {
        return Err(LinkError::Oversized(count));
    }
    Ok(response.held)
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
    line: &mut Line,
    reading: &mut Timed<'_>,
    requested: &mut Requested,
) -> Result<(), LinkError> {
    let parts = &mut requested.piece.parts;
    let found = requested.found.as_deref().unwrap_or_default();
    let mut outcomes = Vec::with_capacity(found.len());
    let slots = found
        .iter()
        .map(|(place, _)| parts[*place].want.into.bytes());
    let slots: Vec<_> = slots.collect();
    let mut cursor = Cursor::resume(slots.clone(), requested.moved);
    let sum = &mut requested.sum;
    let mut result = Ok(());
    while !cursor.is_done() {
        let spans = cursor.window(WINDOW);
        match line.receive(reading, &spans) {
            Ok(bytes) => {
                requested.moved += bytes;
                cursor.advance(bytes, |block, range| {
                    let slot = slots[block];
                    let mut running = sum.take().unwrap_or_else(|| RunningChecksum::of(slot));
                    if range.end < slot.len() {
                        running.advance(slot, range.end);
                        *sum = Some(running);
                    } else {
                        let (place, header) = &found[block];
                        let outcome = verdict(&parts[*place].want, header, running.finish(slot));
                        outcomes.push((*place, outcome));
                    }
                });
            }
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

/// Whether the block that arrived is the one wanted.
fn verdict(want: &Want, header: &FrameHeader, sum: Checksum) -> FetchOutcome {
    let same = header.key == want.key && header.location == want.location;
    if same && header.checksum == sum {
        FetchOutcome::Fetched(sum)
    } else {
        FetchOutcome::Corrupt
    }
}
