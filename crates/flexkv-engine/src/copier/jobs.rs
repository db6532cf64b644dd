//! Jobs: what is asked of the node, and of the copying threads, until a job has ended.
//!
//! Each job is a task beside the session, so the copying threads never wait for the node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum};
use flexkv_ports::{CacheError, Filled, KvCache as _, MemorySlice, StoreGrant};
use tokio::sync::{Semaphore, watch};

use super::queue::{Bad, Copy, Outcome, Queue};
use super::{Finished, LoadBlock, invalid};
use crate::lock::Lock;
use crate::{EngineClient, KvMemory};

/// Stores that hold granted slots at once; the arena has better uses than slots that wait.
const GRANTS: usize = 4;

/// What jobs and threads share.
pub(super) struct Shared {
    client: Arc<EngineClient>,
    memory: KvMemory,
    queue: Queue,
    grants: Semaphore,
    finished: Lock<Vec<Finished>>,
    /// Jobs that have begun and not ended; `stopped` refuses new ones.
    running: watch::Sender<Running>,
}

#[derive(Clone, Copy, Default)]
struct Running {
    jobs: usize,
    stopped: bool,
}

impl Shared {
    pub(super) fn new(client: Arc<EngineClient>, memory: KvMemory) -> Self {
        Self {
            client,
            memory,
            queue: Queue::default(),
            grants: Semaphore::new(GRANTS),
            finished: Lock::default(),
            running: watch::Sender::default(),
        }
    }

    /// Makes copies until the queue is stopped: the work of a copying thread. A defect here costs
    /// the copy, never an engine that waits for it for ever.
    pub(super) fn copy_until_stopped(&self) {
        while let Some(claim) = self.queue.next() {
            let copied = catch_unwind(AssertUnwindSafe(|| self.copy(claim.copy())));
            claim.end(copied.unwrap_or(Err(Bad)));
        }
    }

    /// Makes one copy. Without a session the node may have given the slot to others, and only a
    /// checksum can tell.
    fn copy(&self, copy: &Copy) -> Outcome {
        match copy {
            Copy::Load {
                from,
                to,
                checksum: Some(checksum),
            } => {
                let written = self.memory.block(*to).ok_or(Bad)?.fill_and_sum(from);
                (written == *checksum).then_some(None).ok_or(Bad)
            }
            Copy::Load { from, to, .. } => {
                self.memory.block(*to).ok_or(Bad)?.fill(from);
                self.client.is_attached().then_some(None).ok_or(Bad)
            }
            Copy::Store { from, to } => {
                let block = self.memory.block(*from).ok_or(Bad)?;
                if !self.client.is_attached() {
                    return Err(Bad);
                }
                Ok(Some(block.copy_to(to)))
            }
        }
    }

    /// Counts a job in.
    pub(super) fn begin(&self, most: usize) -> Result<(), CacheError> {
        let waiting = self.finished.lock().len();
        let mut begun = Ok(());
        self.running.send_modify(|running| {
            if running.stopped {
                begun = Err(invalid("the copier was shut down".to_owned()));
            } else if running.jobs + waiting >= most {
                begun = Err(invalid(format!("{most} jobs were not drained")));
            } else {
                running.jobs += 1;
            }
        });
        begun
    }

    /// Counts a job out.
    fn end(&self, finished: Finished) {
        self.finished.lock().push(finished);
        self.running.send_modify(|running| running.jobs -= 1);
    }

    pub(super) fn drain(&self) -> Vec<Finished> {
        std::mem::take(&mut *self.finished.lock())
    }

    pub(super) fn pending(&self) -> usize {
        self.running.borrow().jobs
    }

    /// Sends the threads home and lets all jobs end as they are.
    pub(super) fn stop(&self) {
        self.running.send_modify(|running| running.stopped = true);
        self.grants.close();
        self.queue.stop();
    }

    /// Waits until no job is left.
    pub(super) async fn all_ended(&self) {
        let mut running = self.running.subscribe();
        // The sender is ours, so the wait cannot fail.
        let _ = running.wait_for(|running| running.jobs == 0).await;
    }

    /// The block's bytes at `offset` of the arena.
    fn slot(&self, offset: u64) -> Option<MemorySlice> {
        let offset = usize::try_from(offset).ok()?;
        MemorySlice::new(
            self.client.arena().clone(),
            offset,
            self.memory.block_bytes(),
        )
    }

    /// A job that fills blocks of the engine.
    pub(super) async fn load(self: Arc<Self>, job: u64, blocks: Vec<LoadBlock>) {
        let mut bad = Vec::new();
        let mut copies = Vec::with_capacity(blocks.len());
        for LoadBlock {
            offset,
            block,
            checksum,
        } in blocks
        {
            match self.slot(offset) {
                Some(from) => copies.push((block, from, checksum)),
                None => bad.push(block),
            }
        }
        let ids: Vec<i64> = copies.iter().map(|(block, ..)| *block).collect();
        let copies =
            copies
                .into_iter()
                .map(|(to, from, checksum)| Copy::Load { from, to, checksum });
        let outcomes = self.queue.push(copies.collect()).await;
        let outcomes = outcomes.unwrap_or_else(|_| vec![Err(Bad); ids.len()]);
        let failed = ids.iter().zip(&outcomes);
        bad.extend(
            failed
                .filter(|(_, outcome)| outcome.is_err())
                .map(|(id, _)| id),
        );
        let copied = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        self.end(Finished {
            job,
            ok: bad.is_empty(),
            bad_blocks: bad,
            bytes: self.bytes(copied),
        });
    }

    /// A job that stores blocks of the engine.
    pub(super) async fn store(
        self: Arc<Self>,
        job: u64,
        keys: Vec<BlockKey>,
        first: usize,
        blocks: Vec<i64>,
    ) {
        let mut finished = Finished {
            job,
            ok: false,
            bad_blocks: Vec::new(),
            bytes: 0,
        };
        match self.fill_slots(&keys, first, &blocks).await {
            Ok(stored) => {
                let exists = |id: &i64| self.memory.block(*id).is_some();
                finished.bad_blocks = blocks.into_iter().filter(|id| !exists(id)).collect();
                finished.ok = finished.bad_blocks.is_empty();
                finished.bytes = self.bytes(stored);
            }
            Err(reason) => {
                tracing::debug!(job, reason, "blocks were not stored");
                finished.bad_blocks = blocks;
            }
        }
        self.end(finished);
    }

    /// Stores what the node wants; says how many blocks that were.
    async fn fill_slots(
        &self,
        keys: &[BlockKey],
        first: usize,
        blocks: &[i64],
    ) -> Result<usize, String> {
        let permit = self.grants.acquire().await;
        let _permit = permit.map_err(|_| "the copier was shut down")?;
        let told = |error: CacheError| error.to_string();
        let grant = self.client.store(keys, first).await.map_err(told)?;
        let ticket = grant.ticket;
        let filled = self.copy_to_slots(grant, blocks).await;
        let committed = match &filled {
            Ok(filled) if !filled.is_empty() => self.client.commit(ticket, filled).await,
            _ => Ok(()),
        };
        let released = self.client.release(ticket).await;
        committed.and(released).map_err(told)?;
        filled.map(|filled| filled.len())
    }

    /// Copies blocks to the slots of a grant.
    async fn copy_to_slots(
        &self,
        grant: StoreGrant,
        blocks: &[i64],
    ) -> Result<Vec<Filled>, String> {
        let wanted = grant.slots.into_iter().zip(blocks).enumerate();
        let (indices, copies): (Vec<usize>, Vec<Copy>) = wanted
            .filter_map(|(index, (to, from))| {
                Some((
                    index,
                    Copy::Store {
                        from: *from,
                        to: to?,
                    },
                ))
            })
            .unzip();
        let outcomes = self.queue.push(copies).await;
        let outcomes = outcomes.map_err(|_| "the copier was shut down")?;
        let filled = indices.into_iter().zip(outcomes);
        Ok(filled
            .filter_map(|(index, outcome)| {
                let checksum: Checksum = outcome.ok().flatten()?;
                Some(Filled { index, checksum })
            })
            .collect())
    }

    fn bytes(&self, blocks: usize) -> u64 {
        blocks as u64 * self.memory.block_bytes() as u64
    }
}
