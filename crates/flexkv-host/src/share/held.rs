//! The owner's half of bringing blocks to memory for a reader: each request is a task that has them
//! brought, tells where they are, and holds them until the reader says that it has read them, leaves, or must
//! have given up.
//!
//! Knows nothing of the socket, and not how blocks are brought.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::Location;
use flexkv_ports::{ReadSlot, Stager};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::wire::{self, Named};

/// Requests of one reader at a time; one that asks on is cut off.
pub(super) const REQUESTS_MAX: usize = 16;
/// The longest that a reader may wait.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// How much longer blocks are held than the reader said it would wait for them.
const HOLD_GRACE: Duration = Duration::from_secs(1);

/// What is brought and held for one reader. Dropping it lets go of all.
pub(super) struct Holding {
    stager: Option<Arc<dyn Stager>>,
    /// Blocks that may be held for all readers together.
    room: Arc<Semaphore>,
    most: usize,
    answers: mpsc::Sender<Vec<u8>>,
    tasks: JoinSet<()>,
    /// How to end each request that may still be under way.
    open: HashMap<u64, oneshot::Sender<()>>,
}

impl Holding {
    /// Holds up to `most` blocks, which have places in `room`; puts answers into `answers`.
    pub(super) fn new(
        stager: Option<Arc<dyn Stager>>,
        room: Arc<Semaphore>,
        most: usize,
        answers: mpsc::Sender<Vec<u8>>,
    ) -> Self {
        Self {
            stager,
            room,
            most,
            answers,
            tasks: JoinSet::new(),
            open: HashMap::new(),
        }
    }

    /// Begins to bring blocks. False if the reader has no right to ask so.
    pub(super) fn ask(&mut self, id: u64, blocks: Vec<Named>, patience_ms: u32) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|_, end| !end.is_closed());
        if self.open.len() == REQUESTS_MAX || self.open.contains_key(&id) {
            return false;
        }
        let patience = Duration::from_millis(patience_ms.into()).min(PATIENCE_MAX);
        let request = Request {
            id,
            blocks,
            stager: self.stager.clone(),
            room: self.room.clone(),
            most: self.most,
            answers: self.answers.clone(),
            until: Instant::now() + patience,
        };
        let (end, ended) = oneshot::channel();
        self.open.insert(id, end);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = ended => {}
                () = request.run() => {}
            }
        });
        true
    }

    /// Lets go of a request's blocks; it may have ended before.
    pub(super) fn end(&mut self, id: u64) {
        self.open.remove(&id);
    }
}

struct Request {
    id: u64,
    blocks: Vec<Named>,
    stager: Option<Arc<dyn Stager>>,
    room: Arc<Semaphore>,
    most: usize,
    answers: mpsc::Sender<Vec<u8>>,
    until: Instant,
}

impl Request {
    async fn run(mut self) {
        // The answer is as short: the reader then asks for the rest.
        self.blocks.truncate(self.most);
        let count = self.blocks.len();
        let permits = self.room.acquire_many(count as u32);
        let permits = timeout_at(self.until, permits).await;
        let mut pins: Vec<Option<ReadSlot>> = Vec::new();
        if let (Ok(Ok(_)), Some(stager)) = (&permits, &self.stager) {
            let left = self.until.saturating_duration_since(Instant::now());
            pins = stager.stage(std::mem::take(&mut self.blocks), left).await;
        }
        let location = |pin: &Option<ReadSlot>| pin.as_ref().map(ReadSlot::location);
        let mut held: Vec<Option<Location>> = pins.iter().map(location).collect();
        held.resize(count, None);
        if self
            .answers
            .send(wire::answer(self.id, &held))
            .await
            .is_ok()
        {
            sleep_until(self.until + HOLD_GRACE).await;
        }
    }
}
