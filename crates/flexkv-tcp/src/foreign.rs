//! Moving bytes between sockets and memory that others may write, without a reference to it.
//!
//! The only `unsafe` of this crate: addresses go to the kernel as they are, since neither `&[u8]`
//! nor `IoSlice` may exist over such memory. Knows nothing of blocks or of the protocol.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use flexkv_ports::MemorySlice;

/// The most spans of one call.
pub(crate) const MAX_SPANS: usize = 64;

/// The bytes `at..at + len` of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    slice: &'a MemorySlice,
    at: usize,
    len: usize,
}

impl<'a> Span<'a> {
    /// # Panics
    /// If the bytes are not inside the slice.
    pub(crate) fn new(slice: &'a MemorySlice, at: usize, len: usize) -> Self {
        assert!(
            at <= slice.len() && len <= slice.len() - at,
            "span outside of its slice"
        );
        Self { slice, at, len }
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes from byte `at` of it on into `out`.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) {
        self.slice.read(self.at + at, out);
    }

    /// Copies `bytes` to its beginning.
    pub(crate) fn write(&self, bytes: &[u8]) {
        self.slice.write(self.at, bytes);
    }

    fn iovec(&self) -> libc::iovec {
        // SAFETY: `new` checked that `at` is inside the slice, which is mapped while it lives.
        let base = unsafe { self.slice.as_ptr().add(self.at) };
        libc::iovec {
            iov_base: base.cast(),
            iov_len: self.len,
        }
    }
}

/// A place in a list of slices that are moved one after the other.
pub(crate) struct Cursor<'a> {
    slices: Vec<&'a MemorySlice>,
    /// The slice under way.
    next: usize,
    /// Bytes of it that were moved.
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of `slices`.
    pub(crate) fn new(slices: Vec<&'a MemorySlice>) -> Self {
        Self {
            slices,
            next: 0,
            at: 0,
        }
    }

    /// The place after the first `moved` bytes of `slices`.
    pub(crate) fn resume(slices: Vec<&'a MemorySlice>, moved: usize) -> Self {
        let mut cursor = Self::new(slices);
        cursor.advance(moved, |_, _| {});
        cursor
    }

    /// Whether everything was moved.
    pub(crate) fn is_done(&self) -> bool {
        self.next == self.slices.len()
    }

    /// What comes next: at most `most` bytes in at most [`MAX_SPANS`] spans.
    pub(crate) fn window(&self, most: usize) -> Vec<Span<'a>> {
        let mut spans = Vec::new();
        let mut room = most;
        let mut at = self.at;
        for slice in self.slices[self.next..].iter().take(MAX_SPANS) {
            let len = room.min(slice.len() - at);
            if len == 0 {
                break;
            }
            spans.push(Span::new(slice, at, len));
            room -= len;
            at = 0;
        }
        spans
    }

    /// Moves on by `bytes`; calls `each` with every slice's number and the range moved of it.
    pub(crate) fn advance(&mut self, bytes: usize, mut each: impl FnMut(usize, Range<usize>)) {
        let mut left = bytes;
        while left > 0 {
            let size = self.slices[self.next].len();
            let step = left.min(size - self.at);
            each(self.next, self.at..self.at + step);
            left -= step;
            self.at += step;
            if self.at == size {
                self.next += 1;
                self.at = 0;
            }
        }
    }
}

const NO_BYTES: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Receives into `spans`, in order, at most [`MAX_SPANS`] of them. Returns once there are bytes, or, if
/// `whole`, once all are full, at the socket's time-out, or at the connection's end.
pub(crate) fn receive(stream: &TcpStream, spans: &[Span<'_>], whole: bool) -> io::Result<usize> {
    let mut vectors = [NO_BYTES; MAX_SPANS];
    let count = fill(&mut vectors, spans);
    let mut message = message(&mut vectors[..count]);
    let flags = if whole { libc::MSG_WAITALL } else { 0 };
    // SAFETY: the message points at `count` vectors, which live on this stack; each names mapped,
    // writable memory that `spans` borrows for the length of the call.
    let moved = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, flags) };
    moved_bytes(moved)
}

/// Sends `head`, then `spans`, as far as the socket takes them; returns how many bytes it took. At
/// most [`MAX_SPANS`] spans are used. `more` promises that further bytes follow at once.
pub(crate) fn send(
    stream: &TcpStream,
    head: &[u8],
    spans: &[Span<'_>],
    more: bool,
) -> io::Result<usize> {
    let mut vectors = [NO_BYTES; MAX_SPANS + 1];
    vectors[0] = libc::iovec {
        iov_base: head.as_ptr().cast_mut().cast(),
        iov_len: head.len(),
    };
    let count = 1 + fill(&mut vectors[1..], spans);
    let message = message(&mut vectors[..count]);
    let more = if more { libc::MSG_MORE } else { 0 };
    // SAFETY: the message points at `count` vectors, which live on this stack; each names readable
    // memory, of `head` or of `spans`, borrowed for the length of the call; the kernel only reads.
    let moved = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL | more) };
    moved_bytes(moved)
}

/// Puts the spans' addresses into `vectors`, as many as fit; how many.
fn fill(vectors: &mut [libc::iovec], spans: &[Span<'_>]) -> usize {
    for (vector, span) in vectors.iter_mut().zip(spans) {
        *vector = span.iovec();
    }
    spans.len().min(vectors.len())
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a message header of zero bytes is valid: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

fn moved_bytes(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
