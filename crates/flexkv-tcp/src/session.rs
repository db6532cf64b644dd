//! The owner's end of one connection: handshake, then requests until the reader leaves.
//!
//! Whatever the reader sends, nothing is allocated beyond the bytes that arrived or a constant.
//! Blocks sent by reference stay pinned until the reader says that it has read them. Knows nothing
//! of other connections.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flexkv_block::{BlockKey, FrameHeader, Location};
use flexkv_handshake::{
    Answering, CONFIRM_BYTES, Failed, HELLO_BYTES, PROOF_BYTES, Refusal, Terms,
};
use flexkv_ports::{BlockTier, MemorySlice, ReadSlot, Stager, Suspect};
use futures_executor::block_on;
use rustix::fs::sendfile;
use rustix::net::sockopt;
use thiserror::Error;

use crate::deadline::{self, Timed};
use crate::foreign::Cursor;
use crate::line::Line;
use crate::server::{Lent, Place, ServerConfig, Tally};
use crate::set_up::{is_on_host, set_up};
use crate::stay::{self, Follower};
use crate::wire::{
    ANSWER_BYTES, Answer, ENTRY_BYTES, Entry, MAGIC, MAX_COUNT, REQUEST_BYTES, RESPONSE_BYTES,
    Request, RequestKind, Response, VERSION, WireError,
};

/// Requests whose blocks may be held at once; a reader that goes on without releasing is cut off.
const MAX_HELD: usize = 8;
/// How much longer blocks are held than the reader said it would wait for them.
const HOLD_GRACE: Duration = Duration::from_secs(1);
/// Bytes read from the socket at a time.
const INBOX: usize = 8 << 10;
/// Silence after which the kernel asks whether the reader's host still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a connection ended, other than by the reader leaving.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    /// The socket failed, or a deadline passed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The handshake or a request was refused.
    #[error("refused: {0}")]
    Refused(String),
    /// The reader does not release what it was sent.
    #[error("the reader asks on without releasing blocks")]
    Unreleased,
    /// The reader does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Gives a reader its place, or says why there is none.
pub(crate) type Admit<'a> = &'a dyn Fn(&str) -> Result<Place, String>;

/// Where blocks come from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) tier: &'a dyn BlockTier,
    /// Brings blocks of other tiers to memory.
    pub(crate) stager: Option<&'a dyn Stager>,
}

/// A block that was asked for, and its pin if it is there.
type Found = (Option<Location>, Option<ReadSlot>);

/// What a connection needs of its server.
pub(crate) struct Session<'a> {
    stream: &'a Arc<TcpStream>,
    line: Line,
    source: Source<'a>,
    config: &'a ServerConfig,
    served: &'a Tally,
    inbox: Inbox,
    /// Where its thread runs, if both ends are on one host.
    follower: Option<Follower>,
    /// Its reader's, once it has greeted.
    place: Option<Place>,
    last_id: u32,
    held: VecDeque<Held>,
}

/// Blocks that the socket may still refer to.
pub(crate) struct Held {
    id: u32,
    /// When the reader of the request gives up by itself.
    until: Instant,
    pins: Vec<ReadSlot>,
    _lent: Option<Lent>,
}

impl<'a> Session<'a> {
    /// A connection that was just accepted.
    pub(crate) fn new(
        stream: &'a Arc<TcpStream>,
        source: &Source<'a>,
        config: &'a ServerConfig,
        served: &'a Tally,
    ) -> Self {
        Self {
            stream,
            line: Line::plain(stream.clone()),
            source: *source,
            config,
            served,
            inbox: Inbox::new(),
            follower: None,
            place: None,
            last_id: 0,
            held: VecDeque::new(),
        }
    }

    /// Serves the connection until it ends, if `admit` gives its reader a place. What is still held
    /// must be dropped after the socket.
    pub(crate) fn run(mut self, admit: Admit<'_>) -> (Result<(), SessionError>, VecDeque<Held>) {
        let mut result = self.serve(admit);
        if !self.held.is_empty() {
            // Closing then throws away what is queued instead of sending it later.
            let linger = sockopt::set_socket_linger(self.stream, Some(Duration::ZERO));
            result = result.and_then(|()| Ok(linger.map_err(io::Error::from)?));
        }
        (result, self.held)
    }

    fn serve(&mut self, admit: Admit<'_>) -> Result<(), SessionError> {
        set_up(self.stream)?;
        sockopt::set_socket_keepalive(self.stream, true).map_err(io::Error::from)?;
        sockopt::set_tcp_keepidle(self.stream, KEEPALIVE).map_err(io::Error::from)?;
        self.place = Some(self.handshake(admit)?);
        // TLS is so much work that its two threads had better have a core each.
        let together = !self.line.is_secured() && is_on_host(self.stream);
        self.follower = together.then(Follower::default);
        while self.wait()? {
            if let Some(follower) = &mut self.follower {
                follower.follow(self.stream);
            }
            let until = deadline::until(self.config.request_time);
            let mut reading = Timed::reading(self.stream, until);
            let bytes = self
                .inbox
                .take::<REQUEST_BYTES>(&mut self.line, &mut reading)?;
            let request = match Request::decode(&bytes) {
                Err(WireError::Count { found, .. }) => {
                    return Err(self.refuse(word(&bytes, 8), found, until));
                }
                request => request?,
            };
            if self.is_oversized(&request) {
                return Err(self.refuse(request.id, request.count, until));
            }
            self.release(request.released);
            let entries = self.entries(request.count, &mut reading)?;
            match request.kind {
                RequestKind::Fetch => self.answer(&request, &entries)?,
                RequestKind::Release => {}
                RequestKind::Report => self.pass_on(&entries),
            }
        }
        Ok(())
    }

    fn handshake(&mut self, admit: Admit<'_>) -> Result<Place, SessionError> {
        let until = deadline::until(self.config.handshake_time);
        let mut reading = Timed::reading(self.stream, until);
        let terms = Terms {
            magic: MAGIC,
            version: VERSION,
            block_bytes: self.source.tier.shape().block_bytes as u32,
            namespace: self.config.namespace,
        };
        self.secure(&mut reading, until)?;
        let hello = self
            .inbox
            .take::<HELLO_BYTES>(&mut self.line, &mut reading)?;
        if let Err(failed) = Answering::hear(&terms, &hello) {
            return Err(self.turn_away(failed, until));
        }
        let proof = self
            .inbox
            .take::<PROOF_BYTES>(&mut self.line, &mut reading)?;
        let answered = Answering::reply(&self.config.credential, terms, &hello, &proof);
        let (answering, reply) = match answered {
            Ok(answered) => answered,
            Err(failed) => return Err(self.turn_away(failed, until)),
        };
        self.write_all(&reply, until)?;
        let confirm = self
            .inbox
            .take::<CONFIRM_BYTES>(&mut self.line, &mut reading)?;
        let proven = match answering.confirmed(&confirm) {
            Ok(proven) => proven,
            Err(failed) => return Err(self.turn_away(failed, until)),
        };
        let full = |text| (Refusal::TooManyConnections, text);
        let placed = match proven.misfit() {
            Some(misfit) => Err(misfit),
            None => admit(proven.reader()).map_err(full),
        };
        match placed {
            Ok(place) => {
                self.write_all(&proven.verdict(None), until)?;
                Ok(place)
            }
            Err((refusal, message)) => {
                let bytes = proven.verdict(Some((refusal, &message))).to_vec();
                let refusal = Some(refusal);
                let failed = Failed {
                    refusal,
                    message,
                    bytes,
                };
                Err(self.turn_away(failed, until))
            }
        }
    }

    /// Shakes hands inside TLS first, if so configured.
    fn secure(&mut self, reading: &mut Timed<'_>, until: Instant) -> Result<(), SessionError> {
        let Some(tls) = &self.config.tls else {
            return Ok(());
        };
        let mut writing = Timed::writing(self.stream, until);
        let session = tls.to_reader().map_err(io::Error::other)?;
        let secured = Line::secured(self.stream.clone(), session, reading, &mut writing);
        self.line = secured.inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.config.refusals.count(Refusal::Tls);
            }
        })?;
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        let mut writing = Timed::writing(self.stream, until);
        self.line.write_all(&mut writing, bytes)
    }

    /// Counts the refusal and tells the reader; gives the error to end the connection with.
    fn turn_away(&mut self, failed: Failed, until: Instant) -> SessionError {
        if let Some(refusal) = failed.refusal {
            self.config.refusals.count(refusal);
        }
        match self.write_all(&failed.bytes, until) {
            Ok(()) => SessionError::Refused(failed.message),
            Err(error) => error.into(),
        }
    }

    /// Passes on what the reader says arrived damaged, to whoever looks at it.
    fn pass_on(&self, entries: &[Entry]) {
        let Some(suspects) = &self.config.suspects else {
            return;
        };
        for entry in entries {
            if let Some(location) = entry.location() {
                let key = entry.key;
                suspects.tell(Suspect { location, key });
            }
        }
    }

    /// Whether the request asks for more bytes than one may.
    fn is_oversized(&self, request: &Request) -> bool {
        let block_bytes = self.source.tier.shape().block_bytes;
        let most = (self.config.max_request_bytes / block_bytes).max(1);
        request.kind == RequestKind::Fetch && request.count as usize > most
    }

    /// Tells the reader that its request is too large, and counts it.
    fn refuse(&mut self, id: u32, count: u32, until: Instant) -> SessionError {
        self.config.refusals.count(Refusal::Oversized);
        let response = Response {
            held: false,
            oversized: true,
            id,
            count,
        };
        match self.write_all(&response.encode(), until) {
            Ok(()) => SessionError::Refused(format!("a request for {count} blocks")),
            Err(error) => error.into(),
        }
    }

    /// Waits for the next request; false if the reader has left. A reader may stay silent, but
    /// blocks are held for it only until it has given up by itself.
    fn wait(&mut self) -> io::Result<bool> {
        if !self.inbox.is_empty() {
            return Ok(true);
        }
        let hold = self.held.back().map(|held| held.until + HOLD_GRACE);
        loop {
            let last = hold.unwrap_or_else(|| deadline::until(Duration::MAX));
            let staying = self.follower.as_mut().filter(|follower| follower.stays());
            let patience = staying.as_ref().map(|_| deadline::until(stay::PATIENCE));
            let until = patience.map_or(last, |patience| patience.min(last));
            let mut reading = Timed::reading(self.stream, until);
            match self.inbox.fill(&mut self.line, &mut reading) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) if deadline::timed_out(&error) && until < last => {
                    staying.into_iter().for_each(Follower::leave);
                }
                Err(error) if hold.is_none() && deadline::timed_out(&error) => {}
                filled => return filled.map(|()| true),
            }
        }
    }

    fn entries(&mut self, count: u32, reading: &mut Timed<'_>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for _ in 0..count.min(MAX_COUNT) {
            let bytes = self.inbox.take::<ENTRY_BYTES>(&mut self.line, reading)?;
            entries.push(Entry::decode(&bytes));
        }
        Ok(entries)
    }

    /// Ends the pins of all requests up to `id`.
    fn release(&mut self, id: u32) {
        while self.held.pop_front_if(|held| held.id <= id).is_some() {}
    }

    fn answer(&mut self, request: &Request, entries: &[Entry]) -> Result<(), SessionError> {
        if request.id <= self.last_id {
            return Err(SessionError::Wire(WireError::Id {
                what: "request",
                found: request.id,
            }));
        }
        self.last_id = request.id;
        if self.held.len() >= MAX_HELD {
            return Err(SessionError::Unreleased);
        }
        let patience = Duration::from_millis(request.patience_ms.into());
        let until = deadline::until(patience.min(self.config.response_time));
        let bytes = entries.len() * self.source.tier.shape().block_bytes;
        let lent = self.place.as_ref().and_then(|place| place.lend(bytes));
        if lent.is_none() {
            return Err(self.refuse(request.id, request.count, until));
        }
        let blocks = self.pin(entries, until)?;
        self.send(request.id, blocks, lent, until)
    }

    /// Pins what is there. Blocks that are in other tiers are waited for.
    fn pin(&mut self, entries: &[Entry], until: Instant) -> io::Result<Vec<Found>> {
        let Source { tier, stager } = self.source;
        let here = tier.shape().tier;
        let mut elsewhere: Vec<(Location, BlockKey)> = Vec::new();
        let mut places = Vec::new();
        let mut found: Vec<Found> = Vec::with_capacity(entries.len());
        for (place, entry) in entries.iter().enumerate() {
            let location = entry.location();
            let in_memory = location.filter(|at| at.tier == here);
            let pin = in_memory.and_then(|at| tier.pin(at, entry.key).ok());
            // What is not where it was may have moved to another tier meanwhile.
            if let (Some(at), None) = (location, &pin) {
                elsewhere.push((at, entry.key));
                places.push(place);
            }
            found.push((location, pin));
        }
        if let (Some(stager), false) = (stager, elsewhere.is_empty()) {
            // Threads that are started for this stay where the one that starts them does.
            self.follower.iter_mut().for_each(Follower::leave);
            let staged = stager.stage(elsewhere, deadline::left(until)?);
            for (place, pin) in places.into_iter().zip(block_on(staged)) {
                found[place].1 = pin;
            }
        }
        Ok(found)
    }

    fn send(
        &mut self,
        id: u32,
        blocks: Vec<Found>,
        lent: Option<Lent>,
        until: Instant,
    ) -> Result<(), SessionError> {
        let least = self.config.by_reference;
        let least = least.filter(|_| !self.line.is_secured());
        let by_file = |(_, pin): &Found| pin.as_ref().is_some_and(|pin| file(pin, least).is_some());
        let held = blocks.iter().any(by_file);
        let head = head(id, held, &blocks);
        let pins: Vec<_> = blocks.into_iter().filter_map(|(_, pin)| pin).collect();
        let count = pins.len() as u64;
        let bytes = pins.iter().map(|pin| pin.bytes().len() as u64).sum();
        let mut writing = Timed::writing(self.stream, until);
        if !held {
            send_copied(&mut self.line, &mut writing, &head, &pins)?;
            self.served.add(count, bytes);
            return Ok(());
        }
        // Held before the first byte goes out, so that they are even if sending fails half-way.
        self.held.push_back(Held {
            id,
            until,
            pins,
            _lent: lent,
        });
        let pins = self.held.back().map_or(&[][..], |held| &held.pins);
        send_referred(&mut self.line, &mut writing, &head, pins, least)?;
        self.served.add(count, bytes);
        Ok(())
    }
}

/// The word at byte `at` of a request.
fn word(bytes: &[u8; REQUEST_BYTES], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |word| u32::from_le_bytes(*word))
}

/// The file to send the block from, if it has the `least` bytes to be sent by reference.
fn file(pin: &ReadSlot, least: Option<usize>) -> Option<BorrowedFd<'_>> {
    let bytes = pin.bytes();
    let large = least.is_some_and(|least| bytes.len() >= least);
    bytes.memory().fd().filter(|_| large)
}

/// The response and its answers.
/// A staged block is answered as what was asked for, wherever it lies now.
fn head(id: u32, held: bool, blocks: &[Found]) -> Vec<u8> {
    let mut head = Vec::with_capacity(RESPONSE_BYTES + ANSWER_BYTES * blocks.len());
    let count = blocks.len() as u32;
    let response = Response {
        held,
        oversized: false,
        id,
        count,
    };
    head.extend_from_slice(&response.encode());
    for (asked, pin) in blocks {
        let answer = pin.as_ref().map_or(Answer::Stale, |pin| {
            Answer::Found(FrameHeader {
                key: pin.key(),
                location: asked.unwrap_or_else(|| pin.location()),
                length: pin.bytes().len() as u32,
                checksum: pin.checksum(),
            })
        });
        head.extend_from_slice(&answer.encode());
    }
    head
}

/// Sends head and payloads; the kernel has copied them when this returns.
fn send_copied(
    line: &mut Line,
    writing: &mut Timed<'_>,
    head: &[u8],
    pins: &[ReadSlot],
) -> io::Result<()> {
    let mut payloads = Cursor::new(pins.iter().map(ReadSlot::bytes).collect());
    let mut head = head;
    while !(head.is_empty() && payloads.is_done()) {
        let spans = payloads.window(usize::MAX);
        let sent = line.send(writing, head, &spans, false)?;
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        payloads.advance(sent - of_head, |_, _| {});
    }
    Ok(())
}

/// Sends the head, then the payloads by reference to their file.
fn send_referred(
    line: &mut Line,
    writing: &mut Timed<'_>,
    head: &[u8],
    pins: &[ReadSlot],
    least: Option<usize>,
) -> io::Result<()> {
    let mut head = head;
    while !head.is_empty() {
        let sent = line.send(writing, head, &[], true)?;
        head = &head[sent..];
    }
    for pin in pins {
        match file(pin, least) {
            Some(file) => send_file(writing, file, pin.bytes())?,
            None => send_copied(line, writing, &[], std::slice::from_ref(pin))?,
        }
    }
    Ok(())
}

fn send_file(writing: &mut Timed<'_>, file: BorrowedFd<'_>, bytes: &MemorySlice) -> io::Result<()> {
    let mut offset = bytes.offset() as u64;
    let end = offset + bytes.len() as u64;
    while offset < end {
        let left = (end - offset) as usize;
        writing.call(|stream| Ok(sendfile(stream, file, Some(&mut offset), left)?))?;
    }
    Ok(())
}

/// Bytes that have arrived but were not yet asked for.
struct Inbox {
    bytes: Box<[u8; INBOX]>,
    from: usize,
    to: usize,
}

impl Inbox {
    fn new() -> Self {
        Self {
            bytes: Box::new([0; INBOX]),
            from: 0,
            to: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Waits for bytes, once the inbox is empty.
    fn fill(&mut self, line: &mut Line, reading: &mut Timed<'_>) -> io::Result<()> {
        self.from = 0;
        self.to = 0;
        self.to = line.read(reading, &mut self.bytes[..])?;
        Ok(())
    }

    /// The next `N` bytes.
    fn take<const N: usize>(
        &mut self,
        line: &mut Line,
        reading: &mut Timed<'_>,
    ) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        let mut at = 0;
        while at < N {
            if self.is_empty() {
                self.fill(line, reading)?;
            }
            let step = (N - at).min(self.to - self.from);
            out[at..at + step].copy_from_slice(&self.bytes[self.from..self.from + step]);
            self.from += step;
            at += step;
        }
        Ok(out)
    }
}
