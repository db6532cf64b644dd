//! Another process's view of an arena: the mapped file, checked before anything in it is used.
//!
//! The view can read descriptors and read and write payloads. It has no say in which slot holds
//! what; that is asked of the owner by other means.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use flexkv_block::SlotId;
use flexkv_ports::{Memory, MemorySlice};
use rustix::{fs, io};

use crate::descriptor::{Descriptor, Descriptors};
use crate::layout::HEADER_BYTES;
use crate::mapping::Mapping;
use crate::{ArenaLayout, HostError};

/// An arena owned by another process. Clones are the same mapping.
#[derive(Clone)]
pub struct MappedArena {
    mapping: Arc<Mapping>,
    layout: ArenaLayout,
    descriptors: Descriptors,
}

impl MappedArena {
    /// Maps the arena in `file`, as passed by its owner (see [`crate::HostTier::fd`]). Refuses a
    /// file that is no arena, that has another size than its header says, or that could shrink.
    pub fn open(file: OwnedFd) -> Result<Self, HostError> {
        let stat = fs::fstat(&file).map_err(HostError::refused("ask for the arena's size"))?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = [0; HEADER_BYTES];
        let read = io::pread(&file, &mut header, 0)
            .map_err(HostError::refused("read the arena's header"))?;
        if read < HEADER_BYTES {
            return Err(HostError::Length {
                expected: HEADER_BYTES as u64,
                found: file_bytes,
            });
        }
        let layout = ArenaLayout::decode(&header, file_bytes)?;
        let mapping = Arc::new(Mapping::open(file, layout.file_bytes())?);
        Ok(Self {
            descriptors: Descriptors::new(mapping.clone(), layout),
            mapping,
            layout,
        })
    }

    /// The arena's layout.
    pub fn layout(&self) -> &ArenaLayout {
        &self.layout
    }

    /// The arena's memory, the whole file.
    pub fn memory(&self) -> Arc<dyn Memory> {
        self.mapping.clone()
    }

    /// The payload of a slot; `None` if there is no such slot.
    pub fn block(&self, slot: SlotId) -> Option<MemorySlice> {
        let offset = self.layout.payload_offset(slot)?;
        MemorySlice::new(self.mapping.clone(), offset, self.layout.block_bytes())
    }

    /// What the owner says of a slot; `None` if it holds no block, is changing, or does not exist.
    pub fn descriptor(&self, slot: SlotId) -> Option<Descriptor> {
        self.descriptors.get(slot)
    }

    /// Takes all pages into this process's page table now instead of at their first use.
    pub fn populate(&self) -> Result<(), HostError> {
        self.mapping.populate()
    }
}

impl std::fmt::Debug for MappedArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedArena({:?})", self.layout)
    }
}

#[cfg(test)]
mod tests;
