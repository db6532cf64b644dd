//! One peer of a reader: its queue of batches and the threads that work on them.
//!
//! Each thread owns at most one connection. Threads start at the first batches and end when their
//! connection has gone while there is nothing to do. A connection that cannot be opened or fails
//! is left alone for a time that doubles with every failure; once all are left alone, batches fail
//! at once. Knows nothing of how a connection fetches.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flexkv_handshake::{GreetError, Terms};
use tokio::sync::Semaphore;

use crate::batch::Batch;
use crate::connection::{Connection, LinkError};
use crate::deadline::{left, now, until};
use crate::transport::TransportConfig;
use crate::wire::{MAGIC, VERSION};

/// Batches queued at a peer; further ones wait for room until their deadline.
const QUEUE: usize = 256;
/// How long a thread waits for a batch before it looks whether its connection still lives.
const IDLE_CHECK: Duration = Duration::from_secs(30);
/// A deadline that passes sooner than this after a batch was begun proves nothing about the peer.
const FAIR_CHANCE: Duration = Duration::from_millis(100);

/// A peer, shared by the transport and the peer's threads.
pub(crate) struct Peer {
    address: SocketAddr,
    config: TransportConfig,
    state: Mutex<State>,
    /// One permit for each batch that may be queued.
    pub(crate) room: Semaphore,
    last_use: AtomicU64,
}

struct State {
    stopped: bool,
    queue: VecDeque<Arc<Batch>>,
    lanes: Vec<Lane>,
    refusal: Option<String>,
}

/// One connection's place, whether or not it is open.
#[derive(Default)]
struct Lane {
    activity: Activity,
    wake: Arc<Condvar>,
    stream: Option<Arc<TcpStream>>,
    failures: u32,
    blocked_until: Option<Instant>,
}

/// What a lane's thread does.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Activity {
    /// There is no thread.
    #[default]
    Vacant,
    /// It waits for a batch.
    Idle,
    /// It works, or has been told to look for a batch.
    Busy,
}

impl Lane {
    fn blocked(&self, now: Instant) -> Option<Duration> {
        let left = self.blocked_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

impl State {
    fn all_blocked(&self) -> bool {
        let now = now();
        self.lanes.iter().all(|lane| lane.blocked(now).is_some())
    }

    /// The first batch that has wants left to take.
    fn first(&mut self) -> Option<Arc<Batch>> {
        while let Some(batch) = self.queue.front() {
            if !batch.is_taken() {
                return Some(batch.clone());
            }
            self.queue.pop_front();
        }
        None
    }

    /// The lane best suited for a batch: idle with an open connection, idle, or without a thread.
    fn pick(&self) -> Option<usize> {
        let now = now();
        let rank = |lane: &Lane| match (lane.activity, &lane.stream) {
            _ if lane.blocked(now).is_some() => None,
            (Activity::Busy, _) => None,
            (Activity::Idle, Some(_)) => Some(0),
            (Activity::Idle, None) => Some(1),
            (Activity::Vacant, _) => Some(2),
        };
        let ranked = self.lanes.iter().enumerate();
        let ranked = ranked.filter_map(|(place, lane)| Some((rank(lane)?, place)));
        ranked.min().map(|(_, place)| place)
    }
}

impl Peer {
    /// The peer at `address`. Nothing is opened yet.
    pub(crate) fn new(address: SocketAddr, config: TransportConfig) -> Arc<Self> {
        let lanes = std::iter::repeat_with(Lane::default).take(config.connections.max(1));
        Arc::new(Self {
            address,
            state: Mutex::new(State {
                stopped: false,
                queue: VecDeque::new(),
                lanes: lanes.collect(),
                refusal: None,
            }),
            config,
            room: Semaphore::new(QUEUE),
            last_use: AtomicU64::new(0),
        })
    }

    /// Queues the batch; false if the peer is left alone for now, which fails the batch.
    pub(crate) fn submit(self: &Arc<Self>, batch: &Arc<Batch>) -> bool {
        let mut state = self.lock();
        if state.stopped || state.all_blocked() {
            return false;
        }
        if state.queue.len() >= QUEUE {
            state.queue.retain(|batch| !batch.is_taken());
        }
        let width = batch.width(state.lanes.len());
        state.queue.push_back(batch.clone());
        let failed = self.dispatch(&mut state, width);
        drop(state);
        fail(failed);
        true
    }

    /// Notes that the peer was used as the transport's `tick`-th use.
    pub(crate) fn touch(&self, tick: u64) {
        self.last_use.store(tick, Ordering::Relaxed);
    }

    /// When the peer was last used, in uses of the transport.
    pub(crate) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// What the peer last said when it refused a connection.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.lock().refusal.clone()
    }

    /// Whether nothing is queued or under way.
    pub(crate) fn is_idle(&self) -> bool {
        let mut state = self.lock();
        let busy = |lane: &Lane| lane.activity == Activity::Busy;
        state.first().is_none() && !state.lanes.iter().any(busy)
    }

    /// Ends all threads and connections; what is under way fails.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for lane in &state.lanes {
            if let Some(stream) = &lane.stream {
                // It fails only if the connection has ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            lane.wake.notify_one();
        }
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        fail(queue);
    }

    /// Sets up to `width` threads to work. Returns batches that must be failed, since no lane is
    /// left that could take them.
    fn dispatch(self: &Arc<Self>, state: &mut State, width: usize) -> VecDeque<Arc<Batch>> {
        for _ in 0..width {
            let Some(place) = state.pick() else {
                break;
            };
            let lane = &mut state.lanes[place];
            if lane.activity == Activity::Vacant {
                if let Err(error) = self.spawn(place) {
                    tracing::warn!(%error, peer = %self.address, "cannot start a fetch thread");
                    self.block(lane);
                    continue;
                }
            } else {
                lane.wake.notify_one();
            }
            lane.activity = Activity::Busy;
        }
        if state.all_blocked() {
            return std::mem::take(&mut state.queue);
        }
        VecDeque::new()
    }

    fn spawn(self: &Arc<Self>, place: usize) -> std::io::Result<()> {
        let peer = self.clone();
        std::thread::Builder::new()
            .name("flexkv-tcp-get".to_owned())
            .spawn(move || Worker::new(peer, place).run())
            .map(drop)
    }

    /// Leaves a lane alone for a while, longer after each failure.
    fn block(&self, lane: &mut Lane) {
        let doubled = 1u32.checked_shl(lane.failures).unwrap_or(u32::MAX);
        let pause = self.config.first_pause.saturating_mul(doubled);
        lane.failures = lane.failures.saturating_add(1);
        lane.blocked_until = Some(until(pause.min(self.config.longest_pause)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fail(batches: VecDeque<Arc<Batch>>) {
    batches.iter().for_each(|batch| batch.fail_rest());
}

/// Why a lane has no connection any more.
struct Failure {
    error: LinkError,
    /// A deadline passed, which was too short or found the peer answering: no sign of a bad peer.
    excused: bool,
}

/// The thread of one lane.
struct Worker {
    peer: Arc<Peer>,
    place: usize,
    connection: Option<Connection>,
}

impl Worker {
    fn new(peer: Arc<Peer>, place: usize) -> Self {
        Self {
            peer,
            place,
            connection: None,
        }
    }

    fn run(mut self) {
        while let Some(batch) = self.next() {
            if let Err(failure) = self.work(&batch) {
                self.failed(&failure);
            } else {
                let lane = &mut self.peer.lock().lanes[self.place];
                lane.failures = 0;
                lane.blocked_until = None;
            }
        }
    }

    /// Waits for a batch; `None` once the thread should end.
    fn next(&mut self) -> Option<Arc<Batch>> {
        let peer = self.peer.clone();
        let mut state = peer.lock();
        let wake = state.lanes[self.place].wake.clone();
        while !state.stopped {
            let blocked = state.lanes[self.place].blocked(now());
            if blocked.is_none()
                && let Some(batch) = state.first()
            {
                state.lanes[self.place].activity = Activity::Busy;
                return Some(batch);
            }
            state.lanes[self.place].activity = Activity::Idle;
            let (woken, waited) = wake
                .wait_timeout(state, blocked.unwrap_or(IDLE_CHECK))
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if waited.timed_out() && blocked.is_none() {
                drop(state);
                let alive = self.check();
                state = peer.lock();
                if !alive && state.first().is_none() {
                    break;
                }
            }
        }
        state.lanes[self.place].activity = Activity::Vacant;
        state.lanes[self.place].stream = None;
        None
    }

    /// Drops the connection if it has ended; whether it lives.
    fn check(&mut self) -> bool {
        let ended = self.connection.take_if(|connection| !connection.is_alive());
        if ended.is_some() {
            self.peer.lock().lanes[self.place].stream = None;
        }
        self.connection.is_some()
    }

    /// Works on the batch, through a new connection if the old one has ended.
    fn work(&mut self, batch: &Arc<Batch>) -> Result<(), Failure> {
        if left(batch.until()).is_err() {
            batch.fail_rest();
            return Ok(());
        }
        if !self.check() {
            self.open().map_err(|error| Failure {
                error,
                excused: false,
            })?;
        }
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let began = now();
        let worked = connection.work(batch, self.peer.config.connections);
        worked.map_err(|error| {
            let chance = connection.answered() || began.elapsed() < FAIR_CHANCE;
            Failure {
                excused: error.timed_out() && chance,
                error,
            }
        })
    }

    /// Opens the connection. Its time does not depend on the batch, whose deadline may be short:
    /// the next batch then finds it open.
    fn open(&mut self) -> Result<(), LinkError> {
        let config = &self.peer.config;
        let terms = Terms {
            magic: MAGIC,
            version: VERSION,
            block_bytes: config.block_bytes,
            namespace: config.namespace,
        };
        let until = until(config.open_time);
        let connection = Connection::open(self.peer.address, &config.credential, terms, until)?;
        let mut state = self.peer.lock();
        if state.stopped {
            return Ok(());
        }
        state.refusal = None;
        state.lanes[self.place].stream = Some(connection.stream().clone());
        drop(state);
        self.connection = Some(connection);
        Ok(())
    }

    /// Closes the connection. Unless that is excused, leaves the lane alone for a while and hands
    /// the queue to others.
    fn failed(&mut self, Failure { error, excused }: &Failure) {
        self.connection = None;
        let peer = self.peer.clone();
        let mut state = peer.lock();
        state.lanes[self.place].stream = None;
        if *excused {
            return;
        }
        peer.block(&mut state.lanes[self.place]);
        let pause = state.lanes[self.place].blocked(now());
        tracing::debug!(peer = %peer.address, %error, ?pause, "connection closed");
        if let LinkError::Greet(GreetError::Refused { .. } | GreetError::Impostor) = error {
            let reason = error.to_string();
            if state.refusal.as_ref() != Some(&reason) {
                tracing::warn!(peer = %peer.address, reason, "no connection");
                state.refusal = Some(reason);
            }
        }
        let waiting = usize::from(state.first().is_some());
        let failed = peer.dispatch(&mut state, waiting);
        drop(state);
        fail(failed);
    }
}

impl Drop for Worker {
    /// Even a thread that panicked leaves its lane to a successor.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.peer.lock();
            state.lanes[self.place] = Lane::default();
        }
    }
}
