//! One end of a connection as a stream of bytes with deadlines: plain, or inside TLS.
//!
//! Plain bytes go between socket and slot without a copy; TLS takes them through buffers of its own.
//! Knows nothing of what is sent.

use std::io::{self, BufRead as _, Read, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::Connection as Tls;

use crate::deadline::Timed;
use crate::foreign::{self, Span};

/// Bytes of TLS read from the socket at a time.
const INBOX: usize = 256 << 10;
/// Bytes encrypted before they are sent.
const OUTBOX: usize = 256 << 10;
/// Bytes copied out of a slot at a time to be encrypted: one TLS record.
const RECORD: usize = 16 << 10;

/// One end of a connection.
pub(crate) struct Line {
    stream: Arc<TcpStream>,
    tls: Option<Box<Secured>>,
}

/// TLS, and bytes of it that were read but not yet looked at.
struct Secured {
    tls: Tls,
    inbox: Vec<u8>,
    from: usize,
    to: usize,
}

impl Line {
    /// An end without TLS.
    pub(crate) fn plain(stream: Arc<TcpStream>) -> Self {
        Self { stream, tls: None }
    }

    /// An end inside TLS, once both sides have shaken hands.
    pub(crate) fn secured(
        stream: Arc<TcpStream>,
        mut tls: Tls,
        reading: &mut Timed<'_>,
        writing: &mut Timed<'_>,
    ) -> io::Result<Self> {
        tls.set_buffer_limit(Some(OUTBOX));
        let mut secured = Secured {
            tls,
            inbox: vec![0; INBOX],
            from: 0,
            to: 0,
        };
        while secured.tls.is_handshaking() {
            secured.flush(writing)?;
            if secured.tls.is_handshaking()
                && let Err(error) = secured.fill(reading)
            {
                // The other side is told why, if it still listens.
                let _ = secured.flush(writing);
                return Err(error);
            }
        }
        secured.flush(writing)?;
        let tls = Some(Box::new(secured));
        Ok(Self { stream, tls })
    }

    /// The socket.
    pub(crate) fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// Whether bytes pass through TLS, so that files cannot be sent.
    pub(crate) fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the idle connection is still open and silent, as it must be.
    pub(crate) fn is_alive(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&*self.stream, &mut [0u8; 1], flags);
        peeked.is_err_and(|error| error == rustix::io::Errno::AGAIN)
    }

    /// Reads what is there, at least a byte.
    pub(crate) fn read(&mut self, reading: &mut Timed<'_>, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => reading.call(|mut stream| stream.read(out)),
            Some(tls) => tls.take(reading, |bytes| {
                let count = bytes.len().min(out.len());
                out[..count].copy_from_slice(&bytes[..count]);
                count
            }),
        }
    }

    /// Fills `out`.
    pub(crate) fn read_exact(&mut self, reading: &mut Timed<'_>, out: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < out.len() {
            at += self.read(reading, &mut out[at..])?;
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&mut self, writing: &mut Timed<'_>, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => writing.write_all(bytes),
            Some(tls) => {
                tls.put(writing, bytes)?;
                tls.flush(writing)
            }
        }
    }

    /// Receives into `spans`, in order; how many bytes, at least one.
    pub(crate) fn receive(
        &mut self,
        reading: &mut Timed<'_>,
        spans: &[Span<'_>],
    ) -> io::Result<usize> {
        let whole = reading.is_patient();
        match &mut self.tls {
            None => reading.call(|stream| foreign::receive(stream, spans, whole)),
            Some(tls) => tls.take(reading, |bytes| {
                let mut left = bytes;
                for span in spans {
                    let (now, later) = left.split_at(left.len().min(span.len()));
                    span.write(now);
                    left = later;
                }
                bytes.len() - left.len()
            }),
        }
    }

    /// Sends `head`, then `spans`, as far as the socket takes them; how many bytes it took. `more`
    /// promises that further bytes follow at once.
    pub(crate) fn send(
        &mut self,
        writing: &mut Timed<'_>,
        head: &[u8],
        spans: &[Span<'_>],
        more: bool,
    ) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return writing.call(|stream| foreign::send(stream, head, spans, more));
        };
        tls.put(writing, head)?;
        let mut record = [0; RECORD];
        let mut sent = head.len();
        for span in spans {
            for at in (0..span.len()).step_by(RECORD) {
                let record = &mut record[..RECORD.min(span.len() - at)];
                span.read(at, record);
                tls.put(writing, record)?;
            }
            sent += span.len();
        }
        tls.flush(writing)?;
        Ok(sent)
    }
}

impl Secured {
    /// Gives `each` bytes that have arrived, which says how many it took.
    fn take(
        &mut self,
        reading: &mut Timed<'_>,
        mut each: impl FnMut(&[u8]) -> usize,
    ) -> io::Result<usize> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    let count = each(bytes);
                    reader.consume(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.fill(reading)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes bytes of TLS in, from the socket if none are left.
    fn fill(&mut self, reading: &mut Timed<'_>) -> io::Result<()> {
        if self.from == self.to {
            let inbox = &mut self.inbox;
            self.to = reading.call(|mut stream| stream.read(inbox))?;
            self.from = 0;
        }
        let mut bytes = &self.inbox[self.from..self.to];
        self.tls.read_tls(&mut bytes)?;
        self.from = self.to - bytes.len();
        let processed = self.tls.process_new_packets();
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }

    /// Encrypts all of `bytes`, and sends them as far as there is no room for them.
    fn put(&mut self, writing: &mut Timed<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let taken = self.tls.writer().write(left)?;
            left = &left[taken..];
            if !left.is_empty() {
                self.flush(writing)?;
            }
        }
        Ok(())
    }

    /// Sends all that is encrypted.
    fn flush(&mut self, writing: &mut Timed<'_>) -> io::Result<()> {
        while self.tls.wants_write() {
            writing.call(|mut stream| self.tls.write_tls(&mut stream))?;
        }
        Ok(())
    }
}
