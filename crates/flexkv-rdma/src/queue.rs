//! A reader's connection to one owner: its queue pair, what it knows of the owner's arena, and
//! scratch memory for descriptors.
//!
//! A few batches share it; further ones wait their turn. Knows nothing of how it came about.

use std::sync::{Arc, Mutex};

use flexkv_ports::{FetchOutcome, Fetched, HeapMemory, MemorySlice, Want};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::arena::RdmaArena;
use crate::board::{Batch, Board, Place};
use crate::counts::add;
use crate::nic::{NicError, Region, Rights};
use crate::plan::{SCRATCH_BYTES, Sizes, is_possible, judge, reads};
use crate::wire::OwnersArena;

/// Batches that may be under way at a time: one is verified while the next arrives.
const BATCHES: usize = 4;
/// Bytes that the caller's task verifies itself: less than starting another thread would take.
const INLINE_BYTES: usize = 256 << 10;

/// Memory for the descriptors of a connection's batches.
pub(crate) struct Scratch {
    // Before the memory, so that what is registered is mapped.
    region: Box<dyn Region>,
    memory: MemorySlice,
}

/// See the module.
pub(crate) struct Queue {
    pub(crate) board: Arc<Board>,
    pub(crate) owner: OwnersArena,
    pub(crate) arena: Arc<RdmaArena>,
    pub(crate) scratch: Scratch,
    pub(crate) sizes: Sizes,
    turns: Arc<Semaphore>,
    free: Arc<Mutex<Vec<usize>>>,
}

impl Scratch {
    pub(crate) fn register(arena: &RdmaArena) -> Result<Self, NicError> {
        let bytes = BATCHES * SCRATCH_BYTES;
        let memory = MemorySlice::new(Arc::new(HeapMemory::new(bytes)), 0, bytes);
        let memory = memory.unwrap_or_else(|| unreachable!("a slice of the whole memory"));
        let region = arena.nic().register(memory.clone(), Rights::Nothing)?;
        add(&arena.counters().registrations, 1);
        Ok(Self { region, memory })
    }

    fn part(&self, number: usize) -> MemorySlice {
        self.memory.part(number * SCRATCH_BYTES, SCRATCH_BYTES)
    }
}

impl Queue {
    /// The sizes of batches to an owner of blocks like ours, and the depth that a queue pair needs.
    pub(crate) fn sizes(arena: &RdmaArena) -> (Sizes, u32) {
        let block_bytes = arena.layout().block_bytes();
        let sizes = Sizes::new(block_bytes, arena.nic().limits(), BATCHES);
        let depth = u32::try_from(sizes.requests() * BATCHES).unwrap_or(u32::MAX);
        (sizes, depth)
    }

    /// A connection whose queue pair is connected.
    pub(crate) fn new(
        board: Arc<Board>,
        owner: OwnersArena,
        arena: Arc<RdmaArena>,
        scratch: Scratch,
    ) -> Arc<Self> {
        let (sizes, _) = Self::sizes(&arena);
        Arc::new(Self {
            board,
            owner,
            arena,
            scratch,
            sizes,
            turns: Arc::new(Semaphore::new(BATCHES)),
            free: Arc::new(Mutex::new((0..BATCHES).collect())),
        })
    }

    /// Fetches a batch; one entry per want, in order.
    pub(crate) async fn fetch(self: Arc<Self>, wants: Vec<Want>, until: Instant) -> Vec<Fetched> {
        let possible = |want: &Want| is_possible(&self.owner, want.location);
        if wants.iter().all(possible) {
            return self.fetch_possible(wants, until).await;
        }
        // Senseless locations are told apart, so that the others may be fetched.
        let mut places = Vec::new();
        let (mut wanted, mut fetched) = (Vec::new(), Vec::new());
        for (place, want) in wants.into_iter().enumerate() {
            if possible(&want) {
                places.push(place);
                wanted.push(want);
            } else {
                fetched.push((place, ended(want, FetchOutcome::Stale)));
            }
        }
        let found = self.fetch_possible(wanted, until).await;
        fetched.extend(places.into_iter().zip(found));
        fetched.sort_unstable_by_key(|(place, _)| *place);
        fetched.into_iter().map(|(_, fetched)| fetched).collect()
    }

    async fn fetch_possible(&self, wants: Vec<Want>, until: Instant) -> Vec<Fetched> {
        if wants.is_empty() {
            return Vec::new();
        }
        let turn = timeout_at(until, self.turns.clone().acquire_owned()).await;
        let place = turn.ok().and_then(Result::ok);
        let Some(place) = place.and_then(|turn| Place::take(&self.free, turn)) else {
            return unreachable(wants);
        };
        let scratch = self.scratch.part(place.number);
        let into = (&scratch, self.scratch.region.local_key());
        let Some((reads, runs)) = reads(&self.owner, &self.arena, &wants, into, self.sizes) else {
            tracing::error!("a slot to fetch into is not in the arena that is registered");
            return unreachable(wants);
        };
        let batch = Batch { wants, runs, place };
        let mut landing = self.board.post(batch, reads);
        let landed = match timeout_at(until, &mut landing).await {
            Ok(landed) => landed,
            Err(_) => {
                // The buffers come back only when nothing can reach them any more.
                self.board.fail("no answer before the deadline");
                landing.await
            }
        };
        let Ok((batch, done)) = landed else {
            unreachable!("every batch lands");
        };
        if !done {
            return unreachable(batch.wants);
        }
        verify(batch, scratch).await
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.board.fail("the connection was let go");
    }
}

/// Verifies what arrived, in another thread if that takes long.
async fn verify(batch: Batch, scratch: MemorySlice) -> Vec<Fetched> {
    let bytes: usize = batch.wants.iter().map(|want| want.into.bytes().len()).sum();
    let work = move || {
        let Batch { wants, runs, place } = batch;
        let judged = wants.into_iter().map(|want| {
            let outcome = judge(&want, &runs, &scratch);
            ended(want, outcome)
        });
        let fetched: Vec<_> = judged.collect();
        drop(place);
        fetched
    };
    if bytes <= INLINE_BYTES {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(fetched) => fetched,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

pub(crate) fn ended(want: Want, outcome: FetchOutcome) -> Fetched {
    Fetched {
        outcome,
        into: want.into,
    }
}

pub(crate) fn unreachable(wants: Vec<Want>) -> Vec<Fetched> {
    let lost = |want| ended(want, FetchOutcome::Unreachable);
    wants.into_iter().map(lost).collect()
}
