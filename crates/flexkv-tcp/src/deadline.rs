//! Waiting on a socket until a deadline and not longer: the real clock, and socket time-outs.
//!
//! The one place of this crate that reads a clock. Knows nothing of what is sent.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The longest deadline; a longer one means this.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long a thread that waits briefly stays awake: about what it takes to fall asleep and be woken.
const AWAKE: Duration = Duration::from_micros(60);

/// The time now. Blocking threads wait on sockets, whose time-outs are real.
#[expect(
    clippy::disallowed_methods,
    reason = "socket time-outs run on the real clock, so deadlines of this adapter do too"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The point `after` from now, at most an hour away.
pub(crate) fn until(after: Duration) -> Instant {
    now() + after.min(LONGEST)
}

/// What is left until `until`; an error once nothing is.
pub(crate) fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// Whether `error` says that a socket's time-out passed.
pub(crate) fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Whether a socket's time-out of `armed` would let a call overrun a deadline `left` away by more
/// than a quarter; setting it anew for each call would cost a system call each.
fn overruns(armed: Duration, left: Duration) -> bool {
    armed > left + left / 4 + Duration::from_millis(2)
}

/// One direction of a socket with the time-out that is set on it.
pub(crate) struct Timed<'a> {
    stream: &'a TcpStream,
    /// Gives up before the socket's time-outs could.
    brief: bool,
    /// Looks for bytes for a moment before it sleeps.
    awake: Duration,
    set: fn(&TcpStream, Option<Duration>) -> io::Result<()>,
    armed: Duration,
    until: Instant,
}

impl<'a> Timed<'a> {
    /// Calls that read, until `until`.
    pub(crate) fn reading(stream: &'a TcpStream, until: Instant) -> Self {
        Self::new(stream, TcpStream::set_read_timeout, until)
    }

    /// Calls that write, until `until`.
    pub(crate) fn writing(stream: &'a TcpStream, until: Instant) -> Self {
        Self::new(stream, TcpStream::set_write_timeout, until)
    }

    /// Calls that read until `until`, which is too near for the socket's time-outs. If it is to stay
    /// `awake`, the thread looks for bytes again and again for a moment before it sleeps.
    pub(crate) fn reading_briefly(stream: &'a TcpStream, until: Instant, awake: bool) -> Self {
        Self {
            brief: true,
            awake: if awake { AWAKE } else { Duration::ZERO },
            ..Self::reading(stream, until)
        }
    }

    /// Whether a call may wait for all of its bytes.
    pub(crate) fn is_patient(&self) -> bool {
        !self.brief
    }

    fn new(
        stream: &'a TcpStream,
        set: fn(&TcpStream, Option<Duration>) -> io::Result<()>,
        until: Instant,
    ) -> Self {
        Self {
            stream,
            brief: false,
            awake: Duration::ZERO,
            set,
            armed: Duration::MAX,
            until,
        }
    }

    /// Makes `call`, again if a signal or an early time-out ended it. A call that moves no byte
    /// found the connection closed, which is an error here.
    pub(crate) fn call(
        &mut self,
        mut call: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let left = left(self.until)?;
            if self.brief {
                self.readable(left)?;
            } else if overruns(self.armed, left) {
                (self.set)(self.stream, Some(left))?;
                self.armed = left;
            }
            match call(self.stream) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if timed_out(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Returns once there are bytes to read, or the connection has ended.
    fn readable(&self, left: Duration) -> io::Result<()> {
        let asleep_from = now() + left.min(self.awake);
        loop {
            let awake = now() < asleep_from;
            let wait = if awake { Duration::ZERO } else { left };
            let wait = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            let mut sockets = [PollFd::new(self.stream, PollFlags::IN)];
            match poll(&mut sockets, Some(&wait)) {
                // To yield would give the core away for a whole tick if anyone else wants it.
                Ok(0) if awake => std::hint::spin_loop(),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.call(|mut stream| stream.write(&bytes[at..]))?;
        }
        Ok(())
    }
}
