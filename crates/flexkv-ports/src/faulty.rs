//! Decorators that make a metadata store, a transport or a staged tier fail, drawn from one seed.
//!
//! A test wraps an implementation, keeps the [`Faults`] handle, and turns faults on and off while
//! others use the decorated value. With the same seed and the same order of calls, the same calls
//! fail in the same way. A new handle is quiet: it changes nothing and delays nothing.

mod staged;
mod store;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use staged::FaultyStagedTier;
pub use store::FaultyStore;
pub use transport::FaultyTransport;

use tokio::sync::watch;

/// How a decorated store fails. Probabilities are between 0 and 1, per call.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreFaults {
    /// The call is not done and answered `Unavailable`.
    pub lost_request: f64,
    /// The call is done and answered `Unavailable`, so its caller cannot know.
    pub lost_reply: f64,
    /// How long a lost call takes to fail.
    pub patience: Duration,
    /// Delay of every call.
    pub latency: RangeInclusive<Duration>,
}

impl Default for StoreFaults {
    fn default() -> Self {
        Self {
            lost_request: 0.0,
            lost_reply: 0.0,
            patience: Duration::ZERO,
            latency: Duration::ZERO..=Duration::ZERO,
        }
    }
}

/// How a decorated transport fails. Probabilities are between 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportFaults {
    /// Per fetch: no answer until the deadline, then `Unreachable`.
    pub hang: f64,
    /// Per fetch: `Unreachable` at once.
    pub refused: f64,
    /// Per block: `Unreachable` although the peer answered for others.
    pub unreachable: f64,
    /// Per block: `Corrupt`.
    pub corrupt: f64,
    /// Per block: `Stale`.
    pub stale: f64,
    /// Delay of every fetch.
    pub latency: RangeInclusive<Duration>,
}

impl Default for TransportFaults {
    fn default() -> Self {
        Self {
            hang: 0.0,
            refused: 0.0,
            unreachable: 0.0,
            corrupt: 0.0,
            stale: 0.0,
            latency: Duration::ZERO..=Duration::ZERO,
        }
    }
}

/// How a decorated staged tier fails. Probabilities are between 0 and 1, per transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct StagedFaults {
    /// The transfer does not end.
    pub hang: f64,
    /// `Busy`.
    pub busy: f64,
    /// `Failed`; a block that could not be read is gone.
    pub failed: f64,
    /// Of a read: `Corrupt`, and the block is gone.
    pub corrupt: f64,
    /// Of a read: `Stale`.
    pub stale: f64,
    /// How much longer every transfer takes.
    pub latency: RangeInclusive<Duration>,
}

impl Default for StagedFaults {
    fn default() -> Self {
        Self {
            hang: 0.0,
            busy: 0.0,
            failed: 0.0,
            corrupt: 0.0,
            stale: 0.0,
            latency: Duration::ZERO..=Duration::ZERO,
        }
    }
}

/// The switch board of decorated values. Clones are the same board, with one random sequence.
#[derive(Clone)]
pub struct Faults {
    board: Arc<Mutex<Board>>,
    down: Arc<watch::Sender<bool>>,
}

struct Board {
    rng: fastrand::Rng,
    store: StoreFaults,
    transport: TransportFaults,
    staged: StagedFaults,
    cut: BTreeSet<String>,
    slow: BTreeMap<String, Arc<Wire>>,
    injected: u64,
}

/// What a slow endpoint's blocks come through, one after the other.
struct Wire {
    bytes_per_second: f64,
    turn: tokio::sync::Mutex<()>,
}

impl Faults {
    /// A quiet board that draws from `seed`.
    pub fn new(seed: u64) -> Self {
        let board = Board {
            rng: fastrand::Rng::with_seed(seed),
            store: StoreFaults::default(),
            transport: TransportFaults::default(),
            staged: StagedFaults::default(),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            injected: 0,
        };
        Self {
            board: Arc::new(Mutex::new(board)),
            down: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Sets how stores fail from the next call on.
    pub fn set_store(&self, faults: StoreFaults) {
        self.board().store = faults;
    }

    /// Sets how transports fail from the next fetch on.
    pub fn set_transport(&self, faults: TransportFaults) {
        self.board().transport = faults;
    }

    /// Sets how staged tiers fail from the next transfer on.
    pub fn set_staged(&self, faults: StagedFaults) {
        self.board().staged = faults;
    }

    /// Takes decorated stores and transports down or up. What is under way when it goes down fails too.
    pub fn set_down(&self, down: bool) {
        self.down.send_replace(down);
    }

    /// Cuts transports off from one endpoint, or heals that. A fetch under way is not ended.
    pub fn set_cut(&self, endpoint: &str, cut: bool) {
        let mut board = self.board();
        if cut {
            board.cut.insert(endpoint.to_owned());
        } else {
            board.cut.remove(endpoint);
        }
    }

    /// Lets transports take blocks from one endpoint at this speed in all, from the next fetch on.
    /// Blocks that have come by a fetch's deadline count; the others are `Unreachable`.
    pub fn set_speed(&self, endpoint: &str, bytes_per_second: f64) {
        let wire = Arc::new(Wire {
            bytes_per_second,
            turn: tokio::sync::Mutex::default(),
        });
        self.board().slow.insert(endpoint.to_owned(), wire);
    }

    /// Makes everything work again, without delay.
    pub fn quiet(&self) {
        let mut board = self.board();
        board.store = StoreFaults::default();
        board.transport = TransportFaults::default();
        board.staged = StagedFaults::default();
        board.cut.clear();
        board.slow.clear();
        drop(board);
        self.set_down(false);
    }

    /// Faults so far: calls and blocks that would have gone otherwise without the decorators.
    pub fn injected(&self) -> u64 {
        self.board().injected
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        self.board().injected += 1;
    }

    /// Returns once everything is down.
    async fn went_down(&self) {
        let mut down = self.down.subscribe();
        // The sender lives in `self`, so waiting cannot fail before it succeeds.
        let _ = down.wait_for(|down| *down).await;
    }
}

impl Board {
    /// Draws whether something of this probability happens.
    fn happens(&mut self, probability: f64) -> bool {
        let drawn = self.rng.f64();
        drawn < probability
    }

    /// Draws a duration of the range.
    fn delay(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let width = range.end().saturating_sub(*range.start());
        *range.start() + width.mul_f64(self.rng.f64())
    }
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let board = self.board();
        f.debug_struct("Faults")
            .field("down", &*self.down.borrow())
            .field("cut", &board.cut)
            .field("store", &board.store)
            .field("transport", &board.transport)
            .field("staged", &board.staged)
            .field("injected", &board.injected)
            .finish()
    }
}

#[cfg(test)]
mod tests;
