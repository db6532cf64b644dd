//! The tier as its owner sees it: slots of all directories, numbered through.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flexkv_block::{BlockKey, BlockLayout, Location, Tier};
use flexkv_ports::{
    BoxFuture, Eviction, ReadRefusal, ReadSlot, StagedBlock, StagedRead, StagedTier, TierShape,
    WriteRefusal, WriteSlot,
};
use tokio::sync::oneshot;

use crate::config::SsdConfig;
use crate::device::{Device, Opened};
use crate::error::SsdError;
use crate::format;
use crate::segments;
use crate::stats::{SsdStats, Stats};
use crate::uses::Uses;

/// Blocks on SSD. Dropping it, and the futures it gave, waits for transfers in flight and closes the
/// journals.
pub struct SsdTier {
    /// In the first directory; ends before the locks of the directories do.
    uses: Arc<Uses>,
    devices: Arc<[Placed]>,
    block_bytes: usize,
    recovered: std::sync::Mutex<Vec<StagedBlock>>,
    stats: Arc<Stats>,
    /// Where the next block goes if all have the same room.
    turn: AtomicUsize,
}

/// A device and the slots it has within the tier.
struct Placed {
    device: Device,
    first: u32,
    slots: u32,
}

impl SsdTier {
    /// Opens the directories, makes what is missing, and finds what is in them. Blocks until that is
    /// done, which takes long if slots have to be read because a journal is missing.
    ///
    /// # Errors
    /// If a directory cannot be used; the error names it.
    pub fn open(config: &SsdConfig) -> Result<Self, SsdError> {
        check(config)?;
        let stats = Arc::new(Stats::default());
        let opened = open_all(config)?;
        let total: u64 = opened.iter().map(|it| u64::from(it.slots())).sum();
        if total > u64::from(u32::MAX) {
            return Err(SsdError::TooMany {
                slots: total,
                max: u32::MAX,
            });
        }
        let mut devices = Vec::new();
        let mut first = 0;
        for opened in opened {
            let slots = opened.slots();
            let device = Device::start(opened, first, config, stats.clone())?;
            devices.push(Placed {
                device,
                first,
                slots,
            });
            first += slots;
        }
        let mut recovered = recovered(&devices);
        let folder = segments::folder(&config.dirs[0].path, config.namespace, config.block_bytes);
        let (uses, last_use) = Uses::open(folder.join("uses"), total as usize);
        // Slots are written in turns: of what nobody noted the generation says a little.
        recovered.sort_by_key(|block| {
            let last_use = last_use.get(&block.key.fingerprint());
            let Location {
                generation, slot, ..
            } = block.location;
            (last_use.copied(), generation, slot)
        });
        Ok(Self {
            uses: Arc::new(uses),
            devices: devices.into(),
            block_bytes: config.block_bytes,
            recovered: std::sync::Mutex::new(recovered),
            stats,
            turn: AtomicUsize::new(0),
        })
    }

    /// What was counted since it was opened.
    pub fn stats(&self) -> SsdStats {
        self.stats.read()
    }

    /// The device that a location lies on.
    fn device(&self, location: Location) -> Option<usize> {
        let slot = location.slot.0;
        let at = self.devices.partition_point(|placed| placed.first <= slot);
        let at = at.checked_sub(1)?;
        (slot - self.devices[at].first < self.devices[at].slots).then_some(at)
    }

    /// The device with the largest part of it free.
    fn roomiest(&self) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.devices.len();
        (0..count)
            .map(|n| (n + turn) % count)
            .filter_map(|n| {
                let (usable, free) = self.devices[n].device.room();
                (free > 0).then(|| (n, ((free as u64) << 32) / usable as u64))
            })
            .max_by_key(|(_, part)| *part)
            .map(|(n, _)| n)
    }
}

impl StagedTier for SsdTier {
    fn shape(&self) -> TierShape {
        let usable: usize = self.devices.iter().map(|it| it.device.room().0).sum();
        TierShape {
            tier: Tier::Ssd,
            slots: u32::try_from(usable).unwrap_or(u32::MAX),
            block_bytes: self.block_bytes,
        }
    }

    fn free_slots(&self) -> usize {
        self.devices.iter().map(|it| it.device.room().1).sum()
    }

    fn recovered(&self) -> Vec<StagedBlock> {
        let recovered = self.recovered.lock();
        std::mem::take(&mut *recovered.unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn lost(&self) -> Vec<(BlockKey, Location)> {
        self.devices
            .iter()
            .flat_map(|it| it.device.lost())
            .collect()
    }

    fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> BoxFuture<'static, Result<Location, WriteRefusal>> {
        let size = self.block_bytes;
        assert_eq!(block.bytes().len(), size, "{block:?} has another size");
        let (devices, chosen) = (self.devices.clone(), self.roomiest());
        let uses = self.uses.clone();
        Box::pin(async move {
            let chosen = chosen.ok_or(WriteRefusal::Full)?;
            let fingerprint = block.key().fingerprint();
            let location = devices[chosen].device.write(block, parent).await?;
            uses.note([fingerprint]);
            Ok(location)
        })
    }

    fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> BoxFuture<'static, StagedRead> {
        let size = self.block_bytes;
        assert_eq!(into.bytes().len(), size, "{into:?} has another size");
        let (devices, at) = (self.devices.clone(), self.device(location));
        Box::pin(async move {
            match at {
                Some(at) => devices[at].device.read(location, key, into).await,
                None => StagedRead {
                    into,
                    outcome: Err(ReadRefusal::Stale),
                },
            }
        })
    }

    fn used(&self, keys: &[BlockKey]) {
        self.uses.note(keys.iter().map(|key| key.fingerprint()));
    }

    fn evict(&self, location: Location) -> Eviction {
        match self.device(location) {
            Some(at) => self.devices[at].device.evict(location),
            None => Eviction::Stale,
        }
    }

    fn sync(&self) -> BoxFuture<'static, bool> {
        let waits: Vec<_> = self
            .devices
            .iter()
            .map(|placed| {
                let (answer, synced) = oneshot::channel();
                placed.device.sync(Box::new(move |ok| {
                    answer.send(ok).ok();
                }));
                synced
            })
            .collect();
        Box::pin(async move {
            let mut all = true;
            for wait in waits {
                all &= wait.await.unwrap_or(false);
            }
            all
        })
    }
}

fn check(config: &SsdConfig) -> Result<(), SsdError> {
    if config.dirs.is_empty() {
        return Err(SsdError::NoDirectory);
    }
    if !format::fits(config.block_bytes) {
        return Err(SsdError::BlockBytes {
            bytes: config.block_bytes,
            max: BlockLayout::MAX_BLOCK_BYTES,
        });
    }
    Ok(())
}

/// Opens all directories side by side, as one may have to read all its slots.
fn open_all(config: &SsdConfig) -> Result<Vec<Opened>, SsdError> {
    let mut names = HashSet::new();
    for dir in &config.dirs {
        std::fs::create_dir_all(&dir.path)
            .map_err(SsdError::at(&dir.path, "make the directory"))?;
        let real = std::fs::canonicalize(&dir.path);
        if !names.insert(real.map_err(SsdError::at(&dir.path, "find the directory"))?) {
            return Err(SsdError::Twice {
                path: dir.path.clone(),
            });
        }
    }
    std::thread::scope(|scope| {
        let mut rng = config.rng.clone();
        let opening: Vec<_> = config
            .dirs
            .iter()
            .map(|dir| {
                let fresh = rng.u64(..);
                scope.spawn(move || Opened::open(dir, config, fresh))
            })
            .collect();
        let opened = opening.into_iter().map(|thread| match thread.join() {
            Ok(opened) => opened,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        opened.collect()
    })
}

/// What was found, each block once.
fn recovered(devices: &[Placed]) -> Vec<StagedBlock> {
    let mut keys = HashSet::new();
    let mut blocks = Vec::new();
    for placed in devices {
        for block in placed.device.blocks() {
            if keys.insert(block.key) {
                blocks.push(block);
            } else {
                // The same block lies in another directory, too.
                placed.device.evict(block.location);
            }
        }
    }
    blocks
}
