//! Frames on a Unix stream socket, and the one file that travels beside the first of them.
//!
//! Knows frame borders only; what a body means is decided by the caller.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use crate::wire::{HEADER_BYTES, Header, WireError};

/// Bytes of an idle connection's buffer.
const IDLE_BYTES: usize = 64 << 10;
/// A larger buffer is given back once it is empty.
const RETAINED_BYTES: usize = 1 << 20;
/// No read is made for less room than this.
const LEAST_ROOM: usize = 4 << 10;

/// Why no further frame can be read.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the connection ended inside a frame")]
    Cut,
}

/// Cuts the bytes of a stream into frames. Its memory follows the bytes that came, never a length
/// that was merely announced.
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// The part of the buffer that is not taken yet.
    ready: Range<usize>,
    /// Largest body accepted.
    limit: usize,
}

impl Frames {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: vec![0; IDLE_BYTES],
            ready: 0..0,
            limit,
        }
    }

    /// The next frame, or `None` at the stream's end. Dropping the future loses nothing.
    pub(crate) async fn next(
        &mut self,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<(Header, &[u8])>, StreamError> {
        loop {
            if let Some((header, body)) = self.take()? {
                return Ok(Some((header, &self.buffer[body])));
            }
            let count = source.read(self.room()).await?;
            self.ready.end += count;
            if count == 0 {
                return if self.ready.is_empty() {
                    Ok(None)
                } else {
                    Err(StreamError::Cut)
                };
            }
        }
    }

    /// Like [`Self::next`], and adds files that came beside the bytes to `files`.
    pub(crate) async fn next_with_files(
        &mut self,
        source: &UnixStream,
        files: &mut Vec<OwnedFd>,
    ) -> Result<Option<(Header, &[u8])>, StreamError> {
        loop {
            if let Some((header, body)) = self.take()? {
                return Ok(Some((header, &self.buffer[body])));
            }
            let room = self.room();
            let count = source
                .async_io(Interest::READABLE, || receive(source, room, files))
                .await?;
            self.ready.end += count;
            if count == 0 {
                return if self.ready.is_empty() {
                    Ok(None)
                } else {
                    Err(StreamError::Cut)
                };
            }
        }
    }

    /// Takes a frame that is wholly here: its header and where its body lies.
    fn take(&mut self) -> Result<Option<(Header, Range<usize>)>, WireError> {
        let Some(bytes) = self.buffer[self.ready.clone()].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(bytes, self.limit)?;
        let start = self.ready.start + HEADER_BYTES;
        let end = start + header.body;
        if end > self.ready.end {
            return Ok(None);
        }
        self.ready.start = end;
        Ok(Some((header, start..end)))
    }

    /// Where to read to, at least [`LEAST_ROOM`] bytes.
    fn room(&mut self) -> &mut [u8] {
        if self.ready.is_empty() {
            self.ready = 0..0;
            if self.buffer.len() > RETAINED_BYTES {
                self.buffer = vec![0; IDLE_BYTES];
            }
        }
        if self.buffer.len() - self.ready.end < LEAST_ROOM {
            self.buffer.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
        }
        if self.buffer.len() - self.ready.end < LEAST_ROOM {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        &mut self.buffer[self.ready.end..]
    }
}

/// Reads bytes and files; further files than two are dropped by the kernel.
fn receive(source: &UnixStream, room: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(source, &mut [IoSliceMut::new(room)], &mut control, flags)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            files.extend(received);
        }
    }
    Ok(message.bytes)
}

/// Writes `bytes`, with `file` beside the first of them.
pub(crate) async fn send_with_file(
    stream: &UnixStream,
    bytes: &[u8],
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = &bytes[sent..];
        let files: &[BorrowedFd<'_>] = if sent == 0 { &[file] } else { &[] };
        sent += stream
            .async_io(Interest::WRITABLE, || send(stream, rest, files))
            .await?;
    }
    Ok(())
}

fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for a file beside the message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

/// Writes as much of `bytes` as the socket takes now; gives back how many bytes it took.
pub(crate) fn write_now(stream: &OwnedWriteHalf, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.try_write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
