//! Messages on a Unix socket, with a file beside one of them. Knows no message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Sends `bytes`, with `file` beside the first of them.
pub(super) async fn send(
    stream: &UnixStream,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = &bytes[sent..];
        let file = file.filter(|_| sent == 0);
        sent += stream
            .async_io(Interest::WRITABLE, || send_some(stream, rest, file))
            .await?;
    }
    Ok(())
}

/// Sends what comes out of the queue, until it is closed or the other side has gone.
pub(super) async fn send_all(
    stream: &UnixStream,
    queue: &mut mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        send(stream, &bytes, None).await?;
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for a file beside the message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let parts = [IoSlice::new(bytes)];
    Ok(sendmsg(stream, &parts, &mut control, flags)?)
}

/// Receives `N` bytes, and the last file that came beside them.
pub(super) async fn receive<const N: usize>(
    stream: &UnixStream,
) -> io::Result<([u8; N], Option<OwnedFd>)> {
    let mut bytes = [0; N];
    let file = fill(stream, &mut bytes).await?;
    Ok((bytes, file))
}

/// Fills `bytes`; gives the last file that came beside them.
pub(super) async fn fill(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Option<OwnedFd>> {
    let mut file = None;
    let mut at = 0;
    while at < bytes.len() {
        let received = stream
            .async_io(Interest::READABLE, || {
                receive_some(stream, &mut bytes[at..], &mut file)
            })
            .await?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += received;
    }
    Ok(file)
}

fn receive_some(
    stream: &UnixStream,
    room: &mut [u8],
    file: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(stream, &mut [IoSliceMut::new(room)], &mut control, flags)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            *file = received.last().or_else(|| file.take());
        }
    }
    Ok(message.bytes)
}
