//! A queue pair and the batches that are under way on it.
//!
//! A batch keeps its buffers here until its reads are done, or until the queue pair is closed: only
//! then nothing touches them any more. Whoever waits for a batch may give up; the batch stays. One
//! failure ends the queue pair, and with it all batches. Knows nothing of what is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use flexkv_ports::Want;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::counts::{RdmaCounters, add};
use crate::nic::{Completions, Nic, NicError, Pair, Read};
use crate::plan::Runs;

/// Buffers that reads go to.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) wants: Vec<Want>,
    pub(crate) runs: Runs,
    pub(crate) place: Place,
}

/// A batch's part of the scratch memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) number: usize,
    free: Arc<Mutex<Vec<usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// One of the places in `free`, of which there are as many as permits.
    pub(crate) fn take(
        free: &Arc<Mutex<Vec<usize>>>,
        permit: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let number = free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Self {
            number,
            free: free.clone(),
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self.number);
    }
}

/// A batch that came back, and whether its reads are done.
pub(crate) type Landed = (Batch, bool);

/// See the module.
pub(crate) struct Board {
    pair: OnceLock<Box<dyn Pair>>,
    state: Mutex<State>,
    ended: Notify,
    counters: Arc<RdmaCounters>,
}

#[derive(Default)]
struct State {
    last: u64,
    flying: HashMap<u64, (Batch, oneshot::Sender<Landed>)>,
    /// Whether any batch has arrived.
    proved: bool,
    failure: Option<String>,
}

impl Board {
    /// A new queue pair of `nic` for up to `depth` reads.
    pub(crate) fn open(
        nic: &dyn Nic,
        depth: u32,
        counters: Arc<RdmaCounters>,
    ) -> Result<Arc<Self>, NicError> {
        let board = Arc::new(Self {
            pair: OnceLock::new(),
            state: Mutex::default(),
            ended: Notify::new(),
            counters,
        });
        let heard_by: Weak<dyn Completions> =
            Arc::downgrade(&(board.clone() as Arc<dyn Completions>));
        let pair = nic.pair(depth, heard_by)?;
        let _ = board.pair.set(pair);
        Ok(board)
    }

    pub(crate) fn pair(&self) -> &dyn Pair {
        let pair = self.pair.get();
        &**pair.unwrap_or_else(|| unreachable!("the pair is set before anyone has the board"))
    }

    /// Begins a batch. It always lands: once its reads are done, or once the queue pair has failed.
    pub(crate) fn post(&self, batch: Batch, reads: Vec<Read>) -> oneshot::Receiver<Landed> {
        let (landing, landed) = oneshot::channel();
        let mut state = self.lock();
        if state.failure.is_some() {
            drop(state);
            // Whoever waits has gone if this fails, and the batch is dropped.
            let _ = landing.send((batch, false));
            return landed;
        }
        state.last += 1;
        let id = state.last;
        let blocks = batch.wants.len();
        state.flying.insert(id, (batch, landing));
        drop(state);
        add(&self.counters.blocks, blocks);
        add(&self.counters.work_requests, reads.len());
        add(&self.counters.posts, 1);
        if let Err(error) = self.pair().post(id, reads) {
            self.fail(&error.to_string());
        }
        landed
    }

    /// Closes the queue pair; all batches land. The first reason is kept.
    pub(crate) fn fail(&self, reason: &str) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(reason.to_owned());
        drop(state);
        self.pair().close();
        let flying = std::mem::take(&mut self.lock().flying);
        for (batch, landing) in flying.into_values() {
            let _ = landing.send((batch, false));
        }
        self.ended.notify_one();
    }

    /// Why it failed, and whether any batch had arrived before; `None` if it has not.
    pub(crate) fn failure(&self) -> Option<(String, bool)> {
        let state = self.lock();
        let reason = state.failure.clone()?;
        Some((reason, state.proved))
    }

    /// Waits until it fails. For one task.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Completions for Board {
    fn completed(&self, id: u64, outcome: Result<(), NicError>) {
        add(&self.counters.completions, 1);
        if let Err(error) = outcome {
            return self.fail(&error.to_string());
        }
        let mut state = self.lock();
        state.proved = true;
        let landed = state.flying.remove(&id);
        drop(state);
        if let Some((batch, landing)) = landed {
            let _ = landing.send((batch, true));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Before the buffers of batches that nobody waits for go back to their tier.
        if let Some(pair) = self.pair.get() {
            pair.close();
        }
    }
}
