//! Copies that wait for a thread: loads before stores, in the order in which they came.
//!
//! Knows batches and the outcome of each copy, nothing of jobs or of the node.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, PoisonError};

use flexkv_block::Checksum;
use flexkv_ports::MemorySlice;
use tokio::sync::oneshot;

use crate::lock::Lock;

/// One block to copy.
#[derive(Debug)]
pub(super) enum Copy {
    /// From the arena to the engine's block.
    Load {
        from: MemorySlice,
        to: i64,
        checksum: Option<Checksum>,
    },
    /// From the engine's block to the arena.
    Store { from: i64, to: MemorySlice },
}

/// What became of a copy: the checksum where one was computed.
pub(super) type Outcome = Result<Option<Checksum>, Bad>;

/// A copy was not made, or what was copied is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad;

/// Copies that are waited for together.
struct Batch {
    copies: Vec<Copy>,
    ended: Lock<Ended>,
}

#[derive(Default)]
struct Ended {
    outcomes: Vec<Outcome>,
    left: usize,
    all: Option<oneshot::Sender<Vec<Outcome>>>,
}

/// A copy that a thread has taken on.
pub(super) struct Claim {
    batch: Arc<Batch>,
    at: usize,
}

impl Claim {
    pub(super) fn copy(&self) -> &Copy {
        &self.batch.copies[self.at]
    }

    /// The copy has been made, or not.
    pub(super) fn end(self, outcome: Outcome) {
        let mut ended = self.batch.ended.lock();
        ended.outcomes[self.at] = outcome;
        ended.left -= 1;
        if ended.left == 0
            && let Some(all) = ended.all.take()
        {
            // The job may have been given up.
            let _ = all.send(std::mem::take(&mut ended.outcomes));
        }
    }
}

#[derive(Default)]
struct Waiting {
    /// Batches of which copies are not taken, each with the first such copy.
    loads: VecDeque<(Arc<Batch>, usize)>,
    stores: VecDeque<(Arc<Batch>, usize)>,
    stopped: bool,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Lock<Waiting>,
    more: Condvar,
}

impl Queue {
    /// Hands copies to the threads. What is returned brings their outcomes, in order, or an error
    /// if the queue was stopped before all were made.
    pub(super) fn push(&self, copies: Vec<Copy>) -> oneshot::Receiver<Vec<Outcome>> {
        let (all, outcomes) = oneshot::channel();
        let Some(first) = copies.first() else {
            // The receiver is there, so this cannot fail.
            let _ = all.send(Vec::new());
            return outcomes;
        };
        let loads = matches!(first, Copy::Load { .. });
        let batch = Arc::new(Batch {
            ended: Lock::default(),
            copies,
        });
        *batch.ended.lock() = Ended {
            outcomes: vec![Err(Bad); batch.copies.len()],
            left: batch.copies.len(),
            all: Some(all),
        };
        let mut waiting = self.waiting.lock();
        if !waiting.stopped {
            let queue = if loads {
                &mut waiting.loads
            } else {
                &mut waiting.stores
            };
            queue.push_back((batch, 0));
            self.more.notify_all();
        }
        outcomes
    }

    /// Waits for a copy to make; `None` once the queue is stopped.
    pub(super) fn next(&self) -> Option<Claim> {
        let mut waiting = self.waiting.lock();
        while !waiting.stopped {
            let Waiting { loads, stores, .. } = &mut *waiting;
            let queue = if loads.is_empty() { stores } else { loads };
            if let Some(claim) = take(queue) {
                return Some(claim);
            }
            let woken = self.more.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Gives up all copies that were not taken, and sends the threads home.
    pub(super) fn stop(&self) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting {
            stopped: true,
            ..Waiting::default()
        };
        self.more.notify_all();
    }
}

fn take(queue: &mut VecDeque<(Arc<Batch>, usize)>) -> Option<Claim> {
    let (batch, next) = queue.front_mut()?;
    let claim = Claim {
        batch: batch.clone(),
        at: *next,
    };
    *next += 1;
    if *next == batch.copies.len() {
        queue.pop_front();
    }
    Some(claim)
}

#[cfg(test)]
mod tests;
