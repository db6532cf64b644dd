//! Another process's view of an arena: the mapped file, checked before anything in it is used.
//!
//! The view can read descriptors and payloads and write nothing. It has no say in which slot holds
//! what, and holds nothing still: whoever reads a block checks afterwards that it was one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use flexkv_block::{
    ARENA_HEADER_BYTES, ArenaError, ArenaLayout, BlockKey, Checksum, Descriptor, Location, SlotId,
    Tier,
};
use flexkv_ports::{FetchOutcome, MemorySlice};
use rustix::{fs, io};

use crate::HostError;
use crate::copy::copy_and_sum;
use crate::descriptor::Descriptors;
use crate::mapping::Region;

/// An arena owned by another process. Clones are the same mapping.
#[derive(Clone)]
pub struct MappedArena {
    region: Arc<Region>,
    layout: ArenaLayout,
    descriptors: Descriptors,
}

impl MappedArena {
    /// Maps the arena in `file`, as passed by its owner (see [`crate::HostTier::fd`]), for reading.
    /// Refuses a file that is no arena, that has another size than its header says, or that could
    /// shrink.
    pub fn open(file: OwnedFd) -> Result<Self, HostError> {
        let stat = fs::fstat(&file).map_err(HostError::refused("ask for the arena's size"))?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = [0; ARENA_HEADER_BYTES];
        let read = io::pread(&file, &mut header, 0)
            .map_err(HostError::refused("read the arena's header"))?;
        if read < ARENA_HEADER_BYTES {
            return Err(ArenaError::Length {
                expected: ARENA_HEADER_BYTES as u64,
                found: file_bytes,
            }
            .into());
        }
        let layout = ArenaLayout::decode(&header, file_bytes)?;
        let region = Arc::new(Region::open(file, layout.file_bytes())?);
        Ok(Self {
            descriptors: Descriptors::new(region.clone(), layout),
            region,
            layout,
        })
    }

    /// The arena's layout.
    pub fn layout(&self) -> &ArenaLayout {
        &self.layout
    }

    /// What the owner says of a slot; `None` if it holds no block, is changing, or does not exist.
    pub fn descriptor(&self, slot: SlotId) -> Option<Descriptor> {
        self.descriptors.get(slot)
    }

    /// Copies the block `key` at `location` into `into`, without asking the owner, and verifies the
    /// copy: the same descriptor before and after, and the checksum in it.
    ///
    /// # Panics
    /// If `into` is not as long as a block.
    pub fn fetch(&self, location: Location, key: BlockKey, into: &MemorySlice) -> FetchOutcome {
        assert_eq!(into.len(), self.layout.block_bytes(), "not a block");
        let offset = self.layout.payload_offset(location.slot);
        let wanted = |found: &Descriptor| found.location == location && found.key == key;
        let found = self.descriptor(location.slot).filter(wanted);
        let (Some(offset), Some(before), Tier::Host) = (offset, found, location.tier) else {
            return FetchOutcome::Stale;
        };
        let sum: Checksum = copy_and_sum(&self.region, offset, into);
        if self.descriptor(location.slot) != Some(before) {
            return FetchOutcome::Stale;
        }
        if sum == before.checksum {
            FetchOutcome::Fetched(sum)
        } else {
            FetchOutcome::Corrupt
        }
    }

    /// Takes all pages into this process's page table now instead of at their first use, unless
    /// that would take memory from the system.
    pub fn populate(&self) -> Result<(), HostError> {
        self.region.populate_read()
    }
}

impl std::fmt::Debug for MappedArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedArena({:?})", self.layout)
    }
}

#[cfg(test)]
mod tests;
