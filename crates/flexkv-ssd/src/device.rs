//! One directory of the tier: its slots, its queue of transfers and its journal, put together.
//!
//! A block is written as frame page and bytes, then told to the journal, then promised. A block that
//! goes is told to the journal before its slot is written over. So whatever the journal tells is
//! whole on disk, wherever the process ends.

mod pages;
mod queue;
mod transfer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flexkv_block::{BlockKey, Location, SlotId, Tier};
use flexkv_ports::{
    Eviction, ReadRefusal, ReadSlot, StagedBlock, StagedRead, WriteRefusal, WriteSlot,
};
use tokio::sync::Notify;

use crate::config::{EngineChoice, SsdConfig, SsdDir};
use crate::error::SsdError;
use crate::format::{Geometry, Held, Record};
#[cfg(feature = "rio")]
use crate::io::Rio;
use crate::io::{EngineParts, IoEngine, Threads, Uring};
use crate::journal::{Journal, JournalParts};
use crate::recovery;
use crate::segments::Segments;
use crate::slots::{Left, Slots};
use crate::stats::{Stats, count};
use pages::Pages;
use queue::Queue;

/// A directory that fails this often without a success in between is given up.
const ERRORS_MAX: u32 = 4;
/// At least so many writes may be under way at a directory or wait there, more if its depth is large:
/// more than a node has under way.
const WRITES_MIN: usize = 256;
/// Reads that may wait at a directory.
const READS_MAX: usize = 4096;

/// One directory in use. Dropping it waits for what is in flight and closes the journal.
pub(crate) struct Device {
    shared: Arc<Shared>,
    /// Held for as long as the directory is in use.
    _lock: File,
}

/// What transfers in flight share with the device.
struct Shared {
    dir: PathBuf,
    /// Number of the first slot within the tier.
    base: u32,
    epoch: u64,
    geometry: Geometry,
    slots: Arc<Mutex<Slots>>,
    /// A slot became free.
    freed: Notify,
    queue: Arc<Queue>,
    pages: Arc<Pages>,
    journal: Arc<Journal>,
    stats: Arc<Stats>,
    errors: AtomicU32,
    failed: AtomicBool,
    lost: Mutex<Vec<(BlockKey, Location)>>,
}

/// A device before it has its place within the tier.
pub(crate) struct Opened {
    segments: Segments,
    found: Vec<Held>,
    geometry: Geometry,
}

impl Opened {
    /// Opens a directory and finds what is in it.
    /// `fresh` is the epoch for a directory without a past.
    pub(crate) fn open(dir: &SsdDir, config: &SsdConfig, fresh: u64) -> Result<Self, SsdError> {
        let geometry = Geometry::new(config.namespace, config.block_bytes, config.segment_bytes);
        let segments = Segments::open(&dir.path, dir.bytes, &geometry, fresh)?;
        let found = recovery::recover(&segments, &geometry);
        Ok(Self {
            segments,
            found,
            geometry,
        })
    }

    pub(crate) fn slots(&self) -> u32 {
        self.segments.slots
    }
}

impl Device {
    /// Takes an opened directory into use; its first slot is number `base` of the tier.
    pub(crate) fn start(
        opened: Opened,
        base: u32,
        config: &SsdConfig,
        stats: Arc<Stats>,
    ) -> Result<Self, SsdError> {
        let Opened {
            segments,
            found,
            geometry,
        } = opened;
        let files = Arc::new(segments.files);
        let dir = segments.dir;
        let slots = Arc::new(Mutex::new(Slots::new(segments.slots, &found)));
        let live = slots.clone();
        let journal = Journal::start(JournalParts {
            dir: dir.clone(),
            epoch: segments.epoch,
            files: files.clone(),
            live: Box::new(move || lock(&live).all()),
        });
        let journal = Arc::new(journal.map_err(SsdError::at(&dir, "write the journal"))?);
        let pages = Arc::new(Pages::new((4 * config.depth as usize).max(WRITES_MIN)));
        let mut memory = config.memory.clone();
        memory.push(pages.memory());
        let told = journal.clone();
        let parts = EngineParts {
            files,
            depth: config.depth,
            memory,
            // What was written counts once the journal tells of it: all that ended together at once.
            settled: Arc::new(move || told.flush()),
        };
        let engine = engine(config.engine, &parts)?;
        count(&stats.recovered_blocks, found.len() as u64);
        let shared = Arc::new(Shared {
            dir,
            base,
            epoch: segments.epoch,
            geometry,
            slots,
            freed: Notify::new(),
            queue: Arc::new(Queue::new(engine, config.depth as usize)),
            pages,
            journal,
            stats,
            errors: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            lost: Mutex::default(),
        });
        Ok(Self {
            shared,
            _lock: segments.lock,
        })
    }

    /// What is in it, as its owner has to know it.
    pub(crate) fn blocks(&self) -> Vec<StagedBlock> {
        let held = self.shared.slots().all();
        held.iter()
            .map(|held| StagedBlock {
                key: held.key,
                parent: held.parent,
                location: self.shared.location(held),
            })
            .collect()
    }

    /// Slots in use or usable, and those of them that are free.
    pub(crate) fn room(&self) -> (usize, usize) {
        if self.shared.has_failed() {
            return (0, 0);
        }
        let slots = self.shared.slots();
        (slots.usable(), slots.free())
    }

    pub(crate) fn lost(&self) -> Vec<(BlockKey, Location)> {
        std::mem::take(&mut *lock(&self.shared.lost))
    }

    pub(crate) async fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> Result<Location, WriteRefusal> {
        transfer::write(&self.shared, block, parent).await
    }

    pub(crate) async fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> StagedRead {
        transfer::read(&self.shared, location, key, into).await
    }

    pub(crate) fn evict(&self, location: Location) -> Eviction {
        let Some(slot) = self.shared.local(location) else {
            return Eviction::Stale;
        };
        let (outcome, left) = self.shared.slots().evict(slot, location.generation);
        self.shared.tell_left(left);
        outcome
    }

    /// Calls `synced` once everything written so far is on the device.
    pub(crate) fn sync(&self, synced: Box<dyn FnOnce(bool) + Send>) {
        if self.shared.has_failed() {
            synced(false);
        } else {
            self.shared.journal.sync(synced);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.queue.close();
        self.shared.journal.close();
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn location(&self, held: &Held) -> Location {
        Location {
            tier: Tier::Ssd,
            slot: SlotId(self.base + held.slot),
            generation: held.generation,
        }
    }

    /// The slot's number within this directory, if the location is one of the SSD tier.
    fn local(&self, location: Location) -> Option<u32> {
        let here = location.tier == Tier::Ssd && !self.has_failed();
        here.then(|| location.slot.0.checked_sub(self.base))
            .flatten()
    }

    /// Tells the journal that a slot was left; then the slot is free. That is written with the next
    /// records: until then the block is still whole where it was, and the slot is not used.
    fn tell_left(self: &Arc<Self>, left: Option<Left>) {
        let Some(left) = left else { return };
        let shared = self.clone();
        let record = Record::Freed {
            slot: left.slot,
            generation: left.generation,
        };
        self.journal.append(
            record,
            Box::new(move |written| {
                if written && left.reuse {
                    shared.slots().freed(left.slot);
                } else {
                    shared.slots().retire(left.slot);
                    count(&shared.stats.lost_slots, 1);
                }
                shared.freed.notify_waiters();
            }),
        );
    }

    /// Notes whether the storage did what it should; a directory that only fails is given up.
    fn note(&self, outcome: &std::io::Result<()>) {
        let Err(error) = outcome else {
            self.errors.store(0, Ordering::Relaxed);
            return;
        };
        count(&self.stats.io_errors, 1);
        let dir = self.dir.display();
        tracing::warn!(%dir, %error, "a transfer failed");
        if self.errors.fetch_add(1, Ordering::Relaxed) + 1 >= ERRORS_MAX {
            self.give_up();
        }
    }

    /// Uses the directory no more; its blocks are lost.
    fn give_up(&self) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        count(&self.stats.lost_dirs, 1);
        let held = self.slots().all();
        let dir = self.dir.display();
        tracing::error!(%dir, blocks = held.len(), "the directory is not used any more");
        let lost = held.iter().map(|held| (held.key, self.location(held)));
        lock(&self.lost).extend(lost);
        self.freed.notify_waiters();
    }
}

/// The engine that was chosen, or the one that works.
fn engine(choice: EngineChoice, parts: &EngineParts) -> Result<Box<dyn IoEngine>, SsdError> {
    let threads = || {
        let none = SsdError::at(std::path::Path::new("SSD tier"), "start threads");
        let threads = Threads::new(parts).map_err(none)?;
        Ok::<Box<dyn IoEngine>, _>(Box::new(threads))
    };
    if choice == EngineChoice::Threads {
        return threads();
    }
    #[cfg(feature = "rio")]
    if choice == EngineChoice::Rio {
        let rio = Rio::new(parts).map_err(|source| SsdError::NoIoUring { source })?;
        return Ok(Box::new(rio));
    }
    match (Uring::new(parts), choice) {
        (Ok(uring), _) => Ok(Box::new(uring)),
        (Err(source), EngineChoice::IoUring) => Err(SsdError::NoIoUring { source }),
        (Err(error), _) => {
            tracing::info!(%error, "no io_uring here; threads do the SSD tier's transfers");
            threads()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A refusal of a read that never reached the storage.
fn refused(into: WriteSlot, why: ReadRefusal) -> StagedRead {
    StagedRead {
        into,
        outcome: Err(why),
    }
}
