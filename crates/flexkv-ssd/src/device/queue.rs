//! What waits for the device: reads before writes, a bounded number in flight. Knows nothing of what
//! is transferred.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::io::{IoEngine, Op, Request};

/// Operations on their way to an engine.
pub(crate) struct Queue {
    engine: Box<dyn IoEngine>,
    depth: usize,
    inner: Mutex<Inner>,
    idle: Condvar,
}

#[derive(Default)]
struct Inner {
    reads: VecDeque<Op>,
    writes: VecDeque<Op>,
    in_flight: usize,
    closed: bool,
}

impl Inner {
    /// What is to be started next, if there is room for it.
    fn next(&mut self, depth: usize) -> Option<Op> {
        if self.in_flight >= depth {
            return None;
        }
        let reads_first = self.reads.pop_front();
        let op = reads_first.or_else(|| self.writes.pop_front())?;
        self.in_flight += 1;
        Some(op)
    }
}

impl Queue {
    pub(crate) fn new(engine: Box<dyn IoEngine>, depth: usize) -> Self {
        Self {
            engine,
            depth: depth.max(1),
            inner: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads that wait.
    pub(crate) fn reads_waiting(&self) -> usize {
        self.inner().reads.len()
    }

    /// Starts the operation as soon as there is room.
    pub(crate) fn submit(self: &Arc<Self>, op: Op) {
        let mut inner = self.inner();
        if inner.closed {
            drop(inner);
            return (op.done)(Err(io::Error::other("the tier is being closed")));
        }
        if matches!(op.request, Request::Read(_)) {
            inner.reads.push_back(op);
        } else {
            inner.writes.push_back(op);
        }
        self.pump(inner);
    }

    /// Hands to the engine what there is room for.
    fn pump<'a>(self: &'a Arc<Self>, mut inner: MutexGuard<'a, Inner>) {
        while let Some(op) = inner.next(self.depth) {
            drop(inner);
            let queue = self.clone();
            let told = op.done;
            let done = Box::new(move |result| {
                told(result);
                queue.ended();
            });
            self.engine.submit(Op { done, ..op });
            inner = self.inner();
        }
    }

    fn ended(self: &Arc<Self>) {
        let mut inner = self.inner();
        inner.in_flight -= 1;
        let idle = inner.in_flight == 0 && inner.reads.is_empty() && inner.writes.is_empty();
        if idle {
            drop(inner);
            self.idle.notify_all();
        } else {
            self.pump(inner);
        }
    }

    /// Takes nothing more, and waits for what it has.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        while inner.in_flight > 0 || !inner.reads.is_empty() || !inner.writes.is_empty() {
            inner = self
                .idle
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests;
