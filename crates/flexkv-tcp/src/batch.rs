//! A batch of wants that several connections work on, piece by piece.
//!
//! Every want comes back exactly once, whatever happens to the thread that has it: a piece that is
//! dropped reports what it has not resolved as unreachable. Knows nothing of sockets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use flexkv_ports::{FetchOutcome, Fetched, Want};
use tokio::sync::oneshot;

/// The most blocks of one piece: its request fits any socket's send buffer.
const PIECE_BLOCKS: usize = 128;
/// The most bytes of one piece, unless one block has more.
const PIECE_BYTES: usize = 4 << 20;
/// The least bytes of one piece, if that many are left.
const LEAST_BYTES: usize = 256 << 10;
/// Pieces do not get smaller than this as long as every connection can have one: each is a request.
const GOOD_BYTES: usize = 512 << 10;

/// A want and its place in the answer.
struct Item {
    place: usize,
    want: Want,
}

/// Wants to be fetched until a deadline, and the answer as it grows.
pub(crate) struct Batch {
    until: Instant,
    state: Mutex<State>,
}

struct State {
    todo: VecDeque<Item>,
    done: Vec<Option<Fetched>>,
    missing: usize,
    /// Taken when the answer is sent.
    answer: Option<oneshot::Sender<Vec<Fetched>>>,
}

impl Batch {
    /// A batch of `wants`, and where its answer will come.
    pub(crate) fn new(
        wants: Vec<Want>,
        until: Instant,
    ) -> (Arc<Self>, oneshot::Receiver<Vec<Fetched>>) {
        let (answer, receiver) = oneshot::channel();
        let missing = wants.len();
        let items = wants.into_iter().enumerate();
        let state = State {
            done: (0..missing).map(|_| None).collect(),
            todo: items.map(|(place, want)| Item { place, want }).collect(),
            missing,
            answer: Some(answer),
        };
        let batch = Self {
            until,
            state: Mutex::new(state),
        };
        (Arc::new(batch), receiver)
    }

    /// When the answer is due.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Whether no want is left to take.
    pub(crate) fn is_taken(&self) -> bool {
        self.lock().todo.is_empty()
    }

    /// Whether all of it is one piece, of at most `most` bytes.
    pub(crate) fn is_small(&self, most: usize) -> bool {
        let state = self.lock();
        let bytes: usize = state.todo.iter().map(Item::bytes).sum();
        bytes <= most.min(LEAST_BYTES) && state.todo.len() <= PIECE_BLOCKS
    }

    /// How many connections can work on the batch at once, at most `most`.
    pub(crate) fn width(&self, most: usize) -> usize {
        let state = self.lock();
        let bytes: usize = state.todo.iter().map(Item::bytes).sum();
        let pieces = bytes.div_ceil(LEAST_BYTES).min(state.todo.len());
        pieces.min(most)
    }

    /// Takes the next piece. Pieces shrink towards the batch's end, so that `connections`
    /// connections finish together.
    pub(crate) fn take(self: &Arc<Self>, connections: usize) -> Option<Piece> {
        let mut state = self.lock();
        let left: usize = state.todo.iter().map(Item::bytes).sum();
        let each = left / connections.max(1);
        let share = (each / 2).max(each.min(GOOD_BYTES));
        let share = share.clamp(LEAST_BYTES, PIECE_BYTES);
        let mut bytes = 0;
        let mut count = 0;
        for item in state.todo.iter().take(PIECE_BLOCKS) {
            bytes += item.bytes();
            if count > 0 && bytes > share {
                break;
            }
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let items = state.todo.drain(..count);
        let parts = items.map(|item| Part {
            place: item.place,
            want: item.want,
            outcome: FetchOutcome::Unreachable,
        });
        Some(Piece {
            parts: parts.collect(),
            batch: self.clone(),
        })
    }

    /// Answers every want that nobody has taken as unreachable.
    pub(crate) fn fail_rest(&self) {
        let mut state = self.lock();
        let rest = std::mem::take(&mut state.todo);
        let unreachable = rest.into_iter().map(|item| {
            let fetched = Fetched {
                outcome: FetchOutcome::Unreachable,
                into: item.want.into,
            };
            (item.place, fetched)
        });
        Self::finish(state, unreachable);
    }

    /// Drops every want that nobody has taken: the caller no longer wants an answer.
    pub(crate) fn forget_rest(&self) {
        let rest = std::mem::take(&mut self.lock().todo);
        drop(rest);
    }

    fn finish(mut state: MutexGuard<'_, State>, resolved: impl Iterator<Item = (usize, Fetched)>) {
        for (place, fetched) in resolved {
            state.done[place] = Some(fetched);
            state.missing -= 1;
        }
        if state.missing > 0 {
            return;
        }
        if let Some(answer) = state.answer.take() {
            let fetched = std::mem::take(&mut state.done);
            drop(state);
            // A receiver that is gone gives the buffers back to their tier by this drop.
            drop(answer.send(fetched.into_iter().flatten().collect()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Item {
    fn bytes(&self) -> usize {
        self.want.into.bytes().len()
    }
}

/// One want of a piece.
pub(crate) struct Part {
    place: usize,
    /// What to fetch.
    pub(crate) want: Want,
    /// What has become of it so far.
    pub(crate) outcome: FetchOutcome,
}

/// Some wants of a batch, in the hands of one connection. Dropping it hands them back.
pub(crate) struct Piece {
    /// The wants.
    pub(crate) parts: Vec<Part>,
    batch: Arc<Batch>,
}

impl Piece {
    /// Bytes of its wants.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |part: &Part| part.want.into.bytes().len();
        self.parts.iter().map(bytes).sum()
    }

    /// When its batch is due.
    pub(crate) fn until(&self) -> Instant {
        self.batch.until
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut self.parts).into_iter().map(|part| {
            let fetched = Fetched {
                outcome: part.outcome,
                into: part.want.into,
            };
            (part.place, fetched)
        });
        Batch::finish(self.batch.lock(), parts);
    }
}

#[cfg(test)]
mod tests;
