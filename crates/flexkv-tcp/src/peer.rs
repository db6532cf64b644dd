//! One peer of a reader: its queue of batches and the threads that work on them.
//!
//! Each thread owns at most one connection. Threads start at the first batches and end when their
//! connection has gone while there is nothing to do. A connection that cannot be opened or fails
//! is left alone for a time that doubles with every failure; once all are left alone, batches fail
//! at once. A small batch is fetched by its caller's own thread, if a connection is idle and the peer
//! answers quickly. Knows nothing of how a connection fetches.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flexkv_handshake::Terms;
use flexkv_ports::Suspect;
use tokio::sync::Semaphore;

use crate::batch::Batch;
use crate::connection::{Connection, LinkError, Requested};
use crate::deadline::{left, now, until};
use crate::stay::Cores;
use crate::transport::TransportConfig;
use crate::wire::{MAGIC, VERSION};

/// Batches queued at a peer; further ones wait for room until their deadline.
const QUEUE: usize = 256;
/// Blocks that a peer is yet to be told of; further ones are forgotten.
const SUSPECTS: usize = 1024;
/// How long a thread waits for a batch before it looks whether its connection still lives.
const IDLE_CHECK: Duration = Duration::from_secs(30);
/// A deadline that passes sooner than this after a batch was begun proves nothing about the peer.
const FAIR_CHANCE: Duration = Duration::from_millis(100);
/// The most bytes that a caller's own thread fetches: to wake two others would take longer.
const BRIEF_BYTES: usize = 128 << 10;
/// How long a caller's own thread waits for them before another one goes on.
const BRIEF_TIME: Duration = Duration::from_micros(200);

/// A peer, shared by the transport and the peer's threads.
pub(crate) struct Peer {
    address: SocketAddr,
    config: TransportConfig,
    state: Mutex<State>,
    /// Where its threads stay.
    cores: Cores,
    /// One permit for each batch that may be queued.
    pub(crate) room: Semaphore,
    last_use: AtomicU64,
}

#[derive(Default)]
struct State {
    stopped: bool,
    queue: VecDeque<Arc<Batch>>,
    /// What the owner is yet to be told of.
    suspects: Vec<Suspect>,
    lanes: Vec<Lane>,
    refusal: Option<String>,
}

/// One connection's place, whether or not it is open.
#[derive(Default)]
struct Lane {
    activity: Activity,
    wake: Arc<Condvar>,
    /// The socket of its connection, if it has one.
    stream: Option<Arc<TcpStream>>,
    /// The connection, while nobody works with it.
    connection: Option<Connection>,
    /// What a caller's thread began and the lane's thread is to finish.
    unfinished: Option<Requested>,
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
    /// It waits, while a caller's thread works with its connection.
    Lent,
}

impl Lane {
    fn blocked(&self, now: Instant) -> Option<Duration> {
        let left = self.blocked_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Drops the connection if it has ended; whether it lives.
    fn check(&mut self) -> bool {
        self.connection.take_if(|connection| !connection.is_alive());
        if self.connection.is_none() {
            self.stream = None;
        }
        self.connection.is_some()
    }
}

impl State {
    fn all_blocked(&self) -> bool {
        let now = now();
        self.lanes.iter().all(|lane| lane.blocked(now).is_some())
    }

    /// Whether anything waits for a lane.
    fn has_work(&mut self) -> bool {
        !self.suspects.is_empty() || self.first().is_some()
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

    /// Whether batches other than `batch` have wants left to take.
    fn others_wait(&self, batch: &Arc<Batch>) -> bool {
        let other = |queued: &&Arc<Batch>| !Arc::ptr_eq(queued, batch);
        let mut others = self.queue.iter().filter(other);
        others.any(|queued| !queued.is_taken())
    }

    /// Puts `batch` behind the others, if it is the first.
    fn end_turn(&mut self, batch: &Arc<Batch>) {
        if self
            .queue
            .front()
            .is_some_and(|first| Arc::ptr_eq(first, batch))
        {
            self.queue.rotate_left(1);
        }
    }

    /// Lends an idle connection that lives, if nothing is queued.
    fn lend(&mut self) -> Option<(usize, Connection)> {
        if self.first().is_some() {
            return None;
        }
        let place = self.pick()?;
        let lane = &mut self.lanes[place];
        if lane.activity != Activity::Idle || !lane.check() {
            return None;
        }
        lane.activity = Activity::Lent;
        Some((place, lane.connection.take()?))
    }

    /// The lane best suited for a batch: idle with an open connection, idle, or without a thread.
    fn pick(&self) -> Option<usize> {
        let now = now();
        let rank = |lane: &Lane| match (lane.activity, &lane.stream) {
            _ if lane.blocked(now).is_some() => None,
            (Activity::Busy | Activity::Lent, _) => None,
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
                lanes: lanes.collect(),
                ..State::default()
            }),
            config,
            cores: Cores::default(),
            room: Semaphore::new(QUEUE),
            last_use: AtomicU64::new(0),
        })
    }

    /// Has the batch fetched; false if the peer is left alone for now, which fails the batch.
    pub(crate) fn fetch(self: &Arc<Self>, batch: &Arc<Batch>) -> bool {
        if batch.is_small(BRIEF_BYTES) {
            let lent = self.lock().lend();
            if let Some((place, connection)) = lent {
                Lent { peer: self, place }.fetch(connection, batch);
                return true;
            }
        }
        self.submit(batch)
    }

    /// Queues the batch; false if the peer is left alone for now, which fails the batch.
    fn submit(self: &Arc<Self>, batch: &Arc<Batch>) -> bool {
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

    /// Has the owner told of a block that arrived damaged, unless it is left alone for now or there is
    /// too much to tell already.
    pub(crate) fn report(self: &Arc<Self>, suspect: Suspect) {
        let mut state = self.lock();
        if state.stopped || state.all_blocked() || state.suspects.len() >= SUSPECTS {
            return;
        }
        state.suspects.push(suspect);
        let failed = self.dispatch(&mut state, 1);
        drop(state);
        fail(failed);
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
        let busy = |lane: &Lane| matches!(lane.activity, Activity::Busy | Activity::Lent);
        !state.has_work() && !state.lanes.iter().any(busy)
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
            state.suspects.clear();
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

    /// Notes that the lane's connection is closed. Unless that is excused, leaves the lane alone for a
    /// while and hands the queue to others.
    fn failed(self: &Arc<Self>, place: usize, Failure { error, excused }: &Failure) {
        let mut state = self.lock();
        state.lanes[place].stream = None;
        if *excused {
            return;
        }
        self.block(&mut state.lanes[place]);
        let pause = state.lanes[place].blocked(now());
        tracing::debug!(peer = %self.address, %error, ?pause, "connection closed");
        if error.is_disagreement() {
            let reason = error.to_string();
            if state.refusal.as_ref() != Some(&reason) {
                tracing::warn!(peer = %self.address, reason, "no connection");
                state.refusal = Some(reason);
            }
        }
        let waiting = usize::from(state.has_work());
        let failed = self.dispatch(&mut state, waiting);
        drop(state);
        fail(failed);
    }

    /// Notes that the lane's connection works.
    fn worked(&self, place: usize) {
        let lane = &mut self.lock().lanes[place];
        lane.failures = 0;
        lane.blocked_until = None;
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

impl Failure {
    /// What `error` means after work on `connection` that began at `began`.
    fn new(error: LinkError, connection: &Connection, began: Instant) -> Self {
        let chance = connection.answered() || began.elapsed() < FAIR_CHANCE;
        Self {
            excused: error.timed_out() && chance,
            error,
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let excused = false;
        Self { error, excused }
    }
}

/// A lane whose connection a caller's thread works with. It is free again when this is dropped.
struct Lent<'a> {
    peer: &'a Arc<Peer>,
    place: usize,
}

impl Lent<'_> {
    /// Fetches the batch with the lane's connection; what takes too long is left to the lane's thread.
    fn fetch(self, mut connection: Connection, batch: &Arc<Batch>) {
        let began = now();
        match connection.work_briefly(batch, began + BRIEF_TIME) {
            Err(error) => {
                let failure = Failure::new(error, &connection, began);
                drop(connection);
                self.peer.failed(self.place, &failure);
            }
            Ok(unfinished) => {
                let lane = &mut self.peer.lock().lanes[self.place];
                lane.connection = Some(connection);
                lane.unfinished = unfinished;
            }
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.peer.lock();
        let wanted = state.has_work();
        let lane = &mut state.lanes[self.place];
        lane.activity = Activity::Idle;
        if wanted || lane.unfinished.is_some() {
            lane.activity = Activity::Busy;
            lane.wake.notify_one();
        }
        // The lane's thread may have ended by now.
        let stopped = state.stopped;
        let lane = &mut state.lanes[self.place];
        let left = stopped.then(|| (lane.connection.take(), lane.unfinished.take()));
        drop(state);
        drop(left);
    }
}

/// What the thread of a lane is to do.
enum Job {
    Fetch(Arc<Batch>),
    Finish(Box<Requested>),
    Report(Vec<Suspect>),
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
        while let Some(job) = self.next() {
            let done = match job {
                Job::Fetch(batch) => self.work(&batch),
                Job::Finish(requested) => self.finish(*requested),
                Job::Report(suspects) => self.report(&suspects),
            };
            match done {
                Ok(()) => self.peer.worked(self.place),
                Err(failure) => {
                    self.connection = None;
                    self.peer.failed(self.place, &failure);
                }
            }
        }
    }

    /// Waits for work, with the connection in its lane; `None` once the thread should end.
    fn next(&mut self) -> Option<Job> {
        let peer = self.peer.clone();
        let mut state = peer.lock();
        state.lanes[self.place].connection = self.connection.take();
        let wake = state.lanes[self.place].wake.clone();
        while !state.stopped {
            let blocked = state.lanes[self.place].blocked(now());
            if state.lanes[self.place].activity != Activity::Lent {
                if let Some(job) = self.job(&mut state, blocked.is_some()) {
                    return Some(job);
                }
                state.lanes[self.place].activity = Activity::Idle;
            }
            let (woken, waited) = wake
                .wait_timeout(state, blocked.unwrap_or(IDLE_CHECK))
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            let lane = &mut state.lanes[self.place];
            let idle = lane.activity == Activity::Idle && lane.unfinished.is_none();
            if waited.timed_out() && blocked.is_none() && idle && !lane.check() && !state.has_work()
            {
                break;
            }
        }
        let lane = &mut state.lanes[self.place];
        lane.activity = Activity::Vacant;
        lane.stream = None;
        let left = (lane.connection.take(), lane.unfinished.take());
        drop(state);
        // What was begun goes back as unreachable.
        drop(left);
        None
    }

    /// Takes what there is to do, and the connection out of its lane.
    fn job(&mut self, state: &mut State, blocked: bool) -> Option<Job> {
        let unfinished = state.lanes[self.place].unfinished.take();
        let job = match unfinished {
            Some(requested) => Job::Finish(Box::new(requested)),
            None if blocked => return None,
            None if !state.suspects.is_empty() => Job::Report(std::mem::take(&mut state.suspects)),
            None => Job::Fetch(state.first()?),
        };
        let lane = &mut state.lanes[self.place];
        lane.activity = Activity::Busy;
        self.connection = lane.connection.take();
        Some(job)
    }

    /// Works on the batch, through a new connection if the old one has ended.
    fn work(&mut self, batch: &Arc<Batch>) -> Result<(), Failure> {
        if left(batch.until()).is_err() {
            batch.fail_rest();
            return Ok(());
        }
        self.connect()?;
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let began = now();
        let others = || self.peer.lock().others_wait(batch);
        let peer = &self.peer;
        let worked = connection.work(batch, peer.config.connections, &peer.cores, others);
        worked.map_err(|error| Failure::new(error, connection, began))?;
        self.peer.lock().end_turn(batch);
        Ok(())
    }

    /// Finishes what a caller's thread began.
    fn finish(&mut self, requested: Requested) -> Result<(), Failure> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let began = now();
        let finished = connection.finish(requested);
        finished.map_err(|error| Failure::new(error, connection, began))
    }

    /// Opens a connection if there is none, or it has ended.
    fn connect(&mut self) -> Result<(), LinkError> {
        self.connection.take_if(|connection| !connection.is_alive());
        if self.connection.is_some() {
            return Ok(());
        }
        self.peer.lock().lanes[self.place].stream = None;
        self.open()
    }

    /// Tells the owner, through a new connection if the old one has ended.
    fn report(&mut self, suspects: &[Suspect]) -> Result<(), Failure> {
        self.connect()?;
        if let Some(connection) = &mut self.connection {
            connection.report(suspects, until(self.peer.config.open_time))?;
        }
        Ok(())
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
        let connection = Connection::open(
            self.peer.address,
            config.tls.as_ref(),
            &config.credential,
            terms,
            until(config.open_time),
        )?;
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
