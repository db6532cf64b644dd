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

    /// Starts the operations as soon as there is room.
    pub(crate) fn submit(self: &Arc<Self>, ops: impl IntoIterator<Item = Op>) {
        let mut refused = Vec::new();
        let mut inner = self.inner();
        for op in ops {
            if inner.closed {
                refused.push(op);
            } else if matches!(op.request, Request::Read(_)) {
                inner.reads.push_back(op);
            } else {
                inner.writes.push_back(op);
            }
        }
        drop(inner);
        for op in refused {
            (op.done)(Err(io::Error::other("the tier is being closed")));
        }
        self.pump();
    }

    /// Hands to the engine what there is room for.
    fn pump(self: &Arc<Self>) {
        loop {
            let mut inner = self.inner();
            if inner.in_flight >= self.depth {
                return;
            }
            let reads_first = inner.reads.pop_front();
            let Some(op) = reads_first.or_else(|| inner.writes.pop_front()) else {
                return;
            };
            inner.in_flight += 1;
            drop(inner);
            let queue = self.clone();
            let told = op.done;
            let done = Box::new(move |result| {
                told(result);
                queue.ended();
            });
            self.engine.submit(Op { done, ..op });
        }
    }

    fn ended(self: &Arc<Self>) {
        let mut inner = self.inner();
        inner.in_flight -= 1;
        let idle = inner.in_flight == 0 && inner.reads.is_empty() && inner.writes.is_empty();
        drop(inner);
        if idle {
            self.idle.notify_all();
        } else {
            self.pump();
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
