//! The worker's half of an engine: copies between blocks of the arena and blocks of the engine's KV
//! memory, in the background.
//!
//! Loads go before stores, block by block, so a long store holds up no prompt that waits for its
//! prefix. Which blocks belong to which request is the engine's affair; a job's number is only
//! handed back.

mod jobs;
mod queue;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_ports::CacheError;
use tokio::time::timeout;

use self::jobs::Shared;
use crate::lock::Lock;
use crate::{Attachment, KvMemory};

/// Jobs that were given and not drained.
const MOST_JOBS: usize = 65_536;
/// Copying threads.
const MOST_THREADS: usize = 64;
/// The node answers or is gone by then, see [`crate::EngineClient`].
const JOBS_END_WITHIN: Duration = Duration::from_secs(30);

/// A block to be copied out of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBlock {
    /// Where in the arena it lies, as a load's answer said.
    pub offset: u64,
    /// The engine's number of the block to fill. Engines fill their tables with numbers below 0.
    pub block: i64,
    /// The checksum that the load's answer gave, to be compared once more while copying. Without
    /// it the copy counts only if the session still stands after it, and relies on the ticket
    /// being held all the while, perhaps by another process.
    pub checksum: Option<Checksum>,
}

/// A job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The number it was given.
    pub job: u64,
    /// Whether everything was done. A store that the cache did not want is done.
    pub ok: bool,
    /// The engine's numbers of the blocks that were not loaded, or cannot have been stored.
    pub bad_blocks: Vec<i64>,
    /// Bytes copied, without those of bad blocks.
    pub bytes: u64,
}

/// Copies in threads of its own, for one worker.
pub struct Copier {
    attachment: Arc<Attachment>,
    shared: Arc<Shared>,
    threads: Lock<Vec<JoinHandle<()>>>,
}

impl Copier {
    /// Copies between the arena of `attachment` and `memory` with so many threads.
    ///
    /// # Errors
    /// [`CacheError::Invalid`] if a block of one is not as large as a block of the other, or no
    /// thread can be had; [`CacheError::Gone`] in a process forked from the one that attached.
    pub fn new(
        attachment: Arc<Attachment>,
        memory: KvMemory,
        threads: usize,
    ) -> Result<Self, CacheError> {
        if memory.block_bytes() != attachment.block_bytes() {
            return Err(invalid(format!(
                "a block of the KV memory has {} bytes, a block of the node {}",
                memory.block_bytes(),
                attachment.block_bytes()
            )));
        }
        if !(1..=MOST_THREADS).contains(&threads) {
            return Err(invalid(format!(
                "{threads} copying threads: 1 to {MOST_THREADS} are possible"
            )));
        }
        let copier = Self {
            shared: Arc::new(Shared::new(attachment.client()?.clone(), memory)),
            attachment,
            threads: Lock::default(),
        };
        for at in 0..threads {
            let shared = copier.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("flexkv-copy-{at}"))
                .spawn(move || shared.copy_until_stopped());
            let thread = thread.map_err(|error| invalid(format!("no copying thread: {error}")))?;
            copier.threads.lock().push(thread);
        }
        Ok(copier)
    }

    /// Copies blocks from the arena to the KV memory. A block that cannot be copied is bad; the
    /// others are copied nevertheless.
    ///
    /// # Errors
    /// [`CacheError::Invalid`] after [`Self::shutdown`] or if very many jobs were not drained,
    /// [`CacheError::Gone`] in a forked process. Then no job was begun.
    pub fn load(&self, job: u64, blocks: Vec<LoadBlock>) -> Result<(), CacheError> {
        self.begin()?;
        let load = self.shared.clone().load(job, blocks);
        self.attachment.spawn(load)
    }

    /// Copies blocks from the KV memory to slots that the node grants for `keys[first..]`, and
    /// makes them blocks of the cache. `blocks` has the engine's number for each of these keys.
    /// The node refuses nothing loudly: what it does not want is not copied.
    ///
    /// # Errors
    /// As [`Self::load`], and [`CacheError::Invalid`] if there are not as many blocks as keys.
    pub fn store(
        &self,
        job: u64,
        keys: Vec<BlockKey>,
        first: usize,
        blocks: Vec<i64>,
    ) -> Result<(), CacheError> {
        if keys.len().checked_sub(first) != Some(blocks.len()) {
            return Err(invalid(format!(
                "{} blocks for the {} keys from {first} on",
                blocks.len(),
                keys.len()
            )));
        }
        self.begin()?;
        let store = self.shared.clone().store(job, keys, first, blocks);
        self.attachment.spawn(store)
    }

    /// The jobs that have ended since the last call.
    pub fn drain(&self) -> Vec<Finished> {
        match self.attachment.client() {
            Ok(_) => self.shared.drain(),
            Err(_) => Vec::new(),
        }
    }

    /// Jobs that have not ended.
    pub fn pending(&self) -> usize {
        match self.attachment.client() {
            Ok(_) => self.shared.pending(),
            Err(_) => 0,
        }
    }

    /// Ends all jobs, the unfinished ones without success, and all threads. When this returns,
    /// nobody touches the KV memory any more. [`Self::drain`] still tells what became of the jobs.
    pub fn shutdown(&self) {
        let mut threads = if self.attachment.client().is_ok() {
            self.threads.lock()
        } else {
            return;
        };
        self.shared.stop();
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a copying thread had panicked");
            }
        }
        let ended = self.attachment.block_on(async {
            Ok(timeout(JOBS_END_WITHIN, self.shared.all_ended())
                .await
                .is_ok())
        });
        if ended != Ok(true) {
            tracing::warn!(jobs = self.pending(), "jobs end after their copier");
        }
    }

    /// Takes a job in, if one more can be.
    fn begin(&self) -> Result<(), CacheError> {
        self.attachment.client()?;
        self.shared.begin(MOST_JOBS)
    }
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier")
            .field("attachment", &self.attachment)
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shutdown();
        if self.attachment.client().is_err() {
            // The threads and their locks are those of the process that this was forked from.
            std::mem::forget((self.shared.clone(), std::mem::take(&mut self.threads)));
        }
    }
}

fn invalid(reason: String) -> CacheError {
    CacheError::Invalid { reason }
}
