//! Keeps the two threads of a connection inside one host on the same core.
//!
//! What one of them has copied into the socket is then still in that core's cache when the other copies it
//! out, and neither has to wake a core that sleeps. Nobody is kept on a core for long: the reader while
//! it fetches, the owner while requests come one after the other. Knows nothing of what is sent.

use std::marker::PhantomData;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// How long an owner's thread stays on a core without a request.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// The calling thread stays on one core until this is dropped, which only that thread can do.
pub(crate) struct Stay {
    core: usize,
    before: CpuSet,
    of_thread: PhantomData<*const ()>,
}

impl Stay {
    /// On the core that the thread runs on; `None` if the system does not let it.
    pub(crate) fn here() -> Option<Self> {
        Self::on(sched_getcpu())
    }

    /// On `core`; `None` if the thread may not run there.
    fn on(core: usize) -> Option<Self> {
        let before = sched_getaffinity(None).ok()?;
        if core >= CpuSet::MAX_CPU || !before.is_set(core) {
            return None;
        }
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).ok()?;
        Some(Self {
            core,
            before,
            of_thread: PhantomData,
        })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // It fails only if all those cores were taken away meanwhile; the system has chosen others then.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// The cores that threads of one peer stay on, each on its own.
#[derive(Default)]
pub(crate) struct Cores(Mutex<Vec<usize>>);

/// The calling thread stays on a core where no other one of its peer does, until this is dropped.
pub(crate) struct Apart<'a> {
    cores: &'a Cores,
    stay: Stay,
}

impl Cores {
    /// On the core that the thread runs on; `None` if another one stays there, which the scheduler
    /// can part from this one, or if the system does not let it.
    pub(crate) fn stay(&self) -> Option<Apart<'_>> {
        let mut taken = self.lock();
        let core = sched_getcpu();
        if taken.contains(&core) {
            return None;
        }
        let stay = Stay::on(core)?;
        taken.push(core);
        Some(Apart { cores: self, stay })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Apart<'_> {
    fn drop(&mut self) {
        let core = self.stay.core;
        self.cores.lock().retain(|taken| *taken != core);
    }
}

/// Whether the other end sent from the core that this thread runs on.
pub(crate) fn is_beside(stream: &TcpStream) -> bool {
    sender(stream) == Some(sched_getcpu())
}

/// The core that the bytes which came last were sent from, if both ends are on one host.
fn sender(stream: &TcpStream) -> Option<usize> {
    let core = sockopt::socket_incoming_cpu(stream).ok()?;
    usize::try_from(core).ok()
}

/// An owner's thread, which follows a reader that stays on one core.
#[derive(Default)]
pub(crate) struct Follower {
    last: Option<usize>,
    stay: Option<Stay>,
}

impl Follower {
    /// Notes that a request has come; goes where it was sent from if the one before it was, too.
    pub(crate) fn follow(&mut self, stream: &TcpStream) {
        let from = sender(stream);
        let here = self.stay.as_ref().map(|stay| stay.core);
        if here != from {
            self.stay = None;
            if from == self.last {
                self.stay = from.and_then(Stay::on);
            }
        }
        self.last = from;
    }

    /// Whether the thread stays on one core.
    pub(crate) fn stays(&self) -> bool {
        self.stay.is_some()
    }

    /// Lets the thread run anywhere again.
    pub(crate) fn leave(&mut self) {
        self.stay = None;
    }
}

#[cfg(test)]
mod tests;
