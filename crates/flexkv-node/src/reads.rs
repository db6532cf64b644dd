//! Reads of the staged tier that are under way, shared by all who want their blocks.
//!
//! A read runs for as long as someone holds it; when the last one lets go it is given up and its slots
//! return. What was read becomes blocks in memory. Which blocks are worth reading is decided by whoever
//! starts a read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flexkv_block::{BlockKey, Location};
use flexkv_ports::{ReadRefusal, ReadSlot, StagedRead, StagedTier, WriteSlot};
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::Shared;
use crate::counters::Miss;
use crate::landing::Landing;

/// Transfers of one read under way at a time.
const LANES: usize = 256;

/// A block and where the staged tier has it.
pub(crate) type Wanted = (BlockKey, Location);

/// Who wants blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An engine's load, or a peer, that waits for them.
    Demand,
    /// Nobody yet.
    Ahead,
}

/// A read under way or done. Dropping the last reference gives it up.
pub(crate) struct Read {
    pub(crate) id: u64,
    pub(crate) landing: Arc<Landing<Brought>>,
    keys: Arc<[BlockKey]>,
    reads: Arc<Reads>,
    task: AbortHandle,
}

impl Read {
    /// The blocks that it brings.
    pub(crate) fn keys(&self) -> &[BlockKey] {
        &self.keys
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.task.abort();
        if self.landing.landed().is_none() {
            self.reads.forget(self.id, &self.keys);
        }
    }
}

/// What came of a read.
pub(crate) struct Brought {
    /// Why not all blocks were read, if not all were.
    pub(crate) reason: Option<Miss>,
    /// Keeps the blocks from being evicted before those who wait have pinned them.
    _pins: Vec<ReadSlot>,
}

/// What became of a wish for blocks.
#[derive(Default)]
pub(crate) struct Claim {
    /// Reads that bring what is not in memory.
    pub(crate) reads: Vec<Arc<Read>>,
    /// Which of them was begun now.
    pub(crate) started: Option<u64>,
    /// There were not enough slots for all.
    pub(crate) short: bool,
}

/// The reads that are under way, by the blocks they bring.
pub(crate) struct Reads {
    table: Mutex<Table>,
    /// Those who wait for blocks now.
    waiting: AtomicUsize,
    /// Nobody waits any more.
    calm: Notify,
    /// The right to read ahead.
    pub(crate) ahead: Semaphore,
}

#[derive(Default)]
struct Table {
    last: u64,
    running: HashMap<BlockKey, (u64, Weak<Read>)>,
}

impl Default for Reads {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            waiting: AtomicUsize::new(0),
            calm: Notify::new(),
            ahead: Semaphore::new(1),
        }
    }
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: u64, keys: &[BlockKey]) {
        let mut table = self.lock();
        for key in keys {
            if table.running.get(key).is_some_and(|(of, _)| *of == id) {
                table.running.remove(key);
            }
        }
    }

    /// Notes that someone waits for blocks, until the answer is dropped: nothing is read ahead
    /// meanwhile.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Returns when nobody waits for blocks.
    pub(crate) async fn calm(&self) {
        loop {
            let mut calm = std::pin::pin!(self.calm.notified());
            calm.as_mut().enable();
            if self.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            calm.await;
        }
    }
}

/// Someone waits.
pub(crate) struct Waiting<'a>(&'a Reads);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.calm.notify_waiters();
        }
    }
}

/// Sees to it that blocks come to memory: by joining reads that bring them, and by a new one for the
/// rest, which ends at the deadline. The first ones get slots first.
pub(crate) fn claim(
    shared: &Arc<Shared>,
    staged: &Arc<dyn StagedTier>,
    wanted: &[Wanted],
    deadline: Instant,
    purpose: Purpose,
) -> Claim {
    let mut claim = Claim::default();
    let mut table = shared.reads.lock();
    let keys: Vec<BlockKey> = wanted.iter().map(|(key, _)| *key).collect();
    // Looked up under the lock: a read leaves the table only after its blocks are found.
    let found = shared.core.find(&keys);
    let mut open = Vec::new();
    for (wanted, here) in wanted.iter().zip(found) {
        if here.is_some() {
            continue;
        }
        let running = table.running.get(&wanted.0);
        match running.and_then(|(_, read)| read.upgrade()) {
            Some(read) if claim.reads.iter().any(|known| known.id == read.id) => {}
            Some(read) => claim.reads.push(read),
            None => open.push(*wanted),
        }
    }
    let resets = shared.core.resets();
    let (now, tier, counters) = (shared.now(), &*shared.tier, &shared.counters);
    let slots = match purpose {
        Purpose::Demand => shared.core.reserve(now, open.len(), tier, counters),
        Purpose::Ahead => shared.core.reserve_ahead(now, open.len(), tier, counters),
    };
    claim.short = slots.len() < open.len();
    open.truncate(slots.len());
    if open.is_empty() {
        return claim;
    }
    table.last += 1;
    let job = Job {
        shared: shared.clone(),
        staged: staged.clone(),
        deadline,
        purpose,
        resets,
    };
    let read = start(job, table.last, open, slots);
    for key in read.keys.iter() {
        let entry = (read.id, Arc::downgrade(&read));
        table.running.insert(*key, entry);
    }
    claim.started = Some(read.id);
    claim.reads.push(read);
    claim
}

/// Starts the task of a read.
fn start(job: Job, id: u64, blocks: Vec<Wanted>, slots: Vec<WriteSlot>) -> Arc<Read> {
    let keys: Arc<[BlockKey]> = blocks.iter().map(|(key, _)| *key).collect();
    let reads = job.shared.reads.clone();
    let (landing, under_way) = Landing::new();
    let (all, table) = (keys.clone(), reads.clone());
    let task = tokio::spawn(async move {
        let brought = job.run(&blocks, slots).await;
        table.forget(id, &all);
        under_way.land(brought);
    });
    Arc::new(Read {
        id,
        landing,
        keys,
        reads,
        task: task.abort_handle(),
    })
}

/// A read's task.
struct Job {
    shared: Arc<Shared>,
    staged: Arc<dyn StagedTier>,
    deadline: Instant,
    purpose: Purpose,
    resets: u64,
}

impl Job {
    async fn run(self, blocks: &[Wanted], slots: Vec<WriteSlot>) -> Brought {
        let Self { shared, staged, .. } = &self;
        let mut reason = None;
        let mut arrived = Vec::with_capacity(slots.len());
        let read = |(i, slot): (usize, WriteSlot)| {
            let (key, location) = blocks[i];
            let reading = staged.read(location, key, slot);
            async move { (i, reading.await) }
        };
        let jobs = slots.into_iter().enumerate();
        let mut reads = stream::iter(jobs).map(read).buffer_unordered(LANES);
        loop {
            let Ok(next) = timeout_at(self.deadline, reads.next()).await else {
                shared.counters.staged_late.increment(1);
                reason = Some(Miss::Deadline);
                break;
            };
            let Some((i, StagedRead { into, outcome })) = next else {
                break;
            };
            match outcome {
                Ok(checksum) => arrived.push((i, into, checksum)),
                // The device has more to do than it lets wait: no time for guesses.
                Err(ReadRefusal::Busy) if self.purpose == Purpose::Ahead => {
                    reason = Some(Miss::NoSpace);
                }
                Err(refusal) => reason = Some(not_read(shared, blocks[i], refusal)),
            }
        }
        shared.counters.staged_reads.increment(arrived.len() as u64);
        arrived.sort_unstable_by_key(|(i, ..)| *i);
        let keys: Vec<BlockKey> = arrived.iter().map(|(i, ..)| blocks[*i].0).collect();
        let read = arrived.into_iter();
        let read = read.map(|(i, slot, checksum)| (blocks[i].0, slot, checksum));
        let ahead = self.purpose == Purpose::Ahead;
        let (now, read) = (shared.now(), read.collect());
        shared
            .core
            .promote(now, read, &*shared.tier, self.resets, ahead);
        let pins = shared.pin_all(&keys).into_iter().flatten().collect();
        Brought {
            reason,
            _pins: pins,
        }
    }
}

/// A block could not be read: what the tier has dropped is forgotten.
fn not_read(shared: &Shared, block: Wanted, refusal: ReadRefusal) -> Miss {
    let counters = &shared.counters;
    let (counter, miss) = match refusal {
        ReadRefusal::Busy => (&counters.staged_busy, Miss::NoSpace),
        ReadRefusal::Stale => (&counters.staged_stale, Miss::Stale),
        ReadRefusal::Corrupt => (&counters.staged_corrupt, Miss::Corrupt),
        ReadRefusal::Failed => (&counters.staged_read_failed, Miss::Failed),
    };
    counter.increment(1);
    if refusal != ReadRefusal::Busy {
        shared.core.forget_staged(shared.now(), &[block]);
    }
    miss
}
