//! The reader's half of having blocks brought to memory: requests that wait for the owner's answer, and
//! what is held for them.
//!
//! Knows nothing of the socket, nor of what is done with the blocks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flexkv_block::Location;
use flexkv_ports::Suspect;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::held::REQUESTS_MAX;
use super::wire::{self, Named, Said};

/// Messages that wait to be sent.
const QUEUE: usize = 256;
/// Of these, places that reports leave to requests.
const QUEUE_OF_REQUESTS: usize = 4 * REQUESTS_MAX;

/// What a reader says to one owner.
pub(super) struct Asks {
    queue: mpsc::Sender<Vec<u8>>,
    /// The owner takes no more at a time.
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Vec<Option<Location>>>>,
}

/// Blocks that the owner holds in memory for us, until this is dropped.
pub(super) struct Held {
    asks: Arc<Asks>,
    id: u64,
    /// Where each of the first of them is, as many as the owner would hold; none where it is not to be
    /// had.
    pub(super) locations: Vec<Option<Location>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.asks.lock().waiting.remove(&self.id);
        // If it cannot be told, the owner lets go by itself a little later.
        let _ = self
            .asks
            .queue
            .try_send(Said::End { id: self.id }.encode().to_vec());
    }
}

impl Asks {
    /// Asks nothing yet; what is to be sent comes out of the queue.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Vec<u8>>) {
        let (queue, to_send) = mpsc::channel(QUEUE);
        let asks = Self {
            queue,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            open: Mutex::default(),
        };
        (Arc::new(asks), to_send)
    }

    /// Has blocks brought to memory and held there. `None` if the owner does not answer by `until`.
    pub(super) async fn hold(self: &Arc<Self>, blocks: &[Named], until: Instant) -> Option<Held> {
        let place = timeout_at(until, self.places.clone().acquire_owned()).await;
        let place = place.ok()?.ok()?;
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut open = self.lock();
            open.last += 1;
            let id = open.last;
            open.waiting.insert(id, answer);
            id
        };
        let mut held = Held {
            asks: self.clone(),
            id,
            locations: Vec::new(),
            _place: place,
        };
        let patience = until.saturating_duration_since(Instant::now());
        let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        self.queue.try_send(wire::ask(id, blocks, patience)).ok()?;
        held.locations = timeout_at(until, answered).await.ok()?.ok()?;
        (1..=blocks.len())
            .contains(&held.locations.len())
            .then_some(held)
    }

    /// The owner has answered. To a request that was given up nobody listens.
    pub(super) fn answered(&self, id: u64, locations: Vec<Option<Location>>) {
        if let Some(waiting) = self.lock().waiting.remove(&id) {
            let _ = waiting.send(locations);
        }
    }

    /// The owner has gone: no answer comes any more.
    pub(super) fn close(&self) {
        self.places.close();
        self.lock().waiting.clear();
    }

    /// Tells the owner of a damaged block; false if too much waits to be said.
    pub(super) fn report(&self, suspect: Suspect) -> bool {
        let said = Said::Report(suspect).encode().to_vec();
        self.queue.capacity() > QUEUE_OF_REQUESTS && self.queue.try_send(said).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
