//! An arena that a device can reach: registered in chunks, each of which holds whole slots.
//!
//! The same registration serves both directions: blocks are read into its slots, and peers read
//! blocks out of them. Knows nothing of what the slots hold.

use std::ops::Range;
use std::sync::Arc;

use flexkv_block::{ArenaLayout, SlotId};
use flexkv_ports::{Memory, MemorySlice};

use crate::counts::{RdmaCounters, add};
use crate::nic::{Nic, NicError, Region, Rights};
use crate::wire::Chunk;

/// The most bytes of a chunk that has more than one slot. A chunk is pinned by one call of the
/// kernel, so this bounds how long each of them takes; huge pages make it cheaper, where they are.
const CHUNK_BYTES: usize = 1 << 30;

/// An arena, registered until this is dropped.
pub struct RdmaArena {
    nic: Arc<dyn Nic>,
    // Before `memory`, so that what is registered is mapped.
    chunks: Vec<Registered>,
    memory: Arc<dyn Memory>,
    layout: ArenaLayout,
    counters: Arc<RdmaCounters>,
}

struct Registered {
    bytes: Range<usize>,
    region: Box<dyn Region>,
}

impl RdmaArena {
    /// Registers `memory`, an arena of this layout, whole. Takes its pages from the system.
    pub fn register(
        nic: Arc<dyn Nic>,
        memory: Arc<dyn Memory>,
        layout: ArenaLayout,
    ) -> Result<Arc<Self>, NicError> {
        let step = "register the arena";
        if memory.len() < layout.file_bytes() {
            return Err(NicError::new(step, "its memory is shorter than its layout"));
        }
        let counters = Arc::new(RdmaCounters::default());
        let register = |bytes: Range<usize>| {
            let part = MemorySlice::new(memory.clone(), bytes.start, bytes.len())
                .ok_or_else(|| NicError::new(step, "a chunk is outside of it"))?;
            let region = nic.register(part, Rights::Read)?;
            add(&counters.registrations, 1);
            Ok(Registered { bytes, region })
        };
        let chunks = chunks(&layout, CHUNK_BYTES).map(register);
        Ok(Arc::new(Self {
            chunks: chunks.collect::<Result<_, NicError>>()?,
            nic,
            memory,
            layout,
            counters,
        }))
    }

    /// The device it is registered with.
    pub fn nic(&self) -> &Arc<dyn Nic> {
        &self.nic
    }

    /// Its layout.
    pub fn layout(&self) -> &ArenaLayout {
        &self.layout
    }

    /// Work done for it.
    pub fn counters(&self) -> &Arc<RdmaCounters> {
        &self.counters
    }

    /// The key for reads into `slice`; none if it is not inside one chunk of this arena.
    pub(crate) fn local_key(&self, slice: &MemorySlice) -> Option<u32> {
        if slice.memory().base() != self.memory.base() {
            return None;
        }
        let last = slice.offset() + slice.len();
        let at = |chunk: &&Registered| chunk.bytes.contains(&slice.offset());
        let chunk = self.chunks.iter().find(at)?;
        (last <= chunk.bytes.end).then(|| chunk.region.local_key())
    }

    /// What readers are told: where each chunk lies, and the key that opens it.
    pub(crate) fn table(&self) -> Vec<Chunk> {
        let base = self.memory.base() as u64;
        let told = |chunk: &Registered| Chunk {
            address: base + chunk.bytes.start as u64,
            bytes: chunk.bytes.len() as u64,
            key: chunk.region.remote_key(),
        };
        self.chunks.iter().map(told).collect()
    }
}

impl std::fmt::Debug for RdmaArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (device, chunks) = (self.nic.name(), self.chunks.len());
        write!(f, "RdmaArena({device}, {chunks} chunks)")
    }
}

/// The chunks of an arena, which follow each other: the first begins with the header and holds all
/// descriptors, each ends after a slot, and one with more than one slot has at most `most` bytes.
fn chunks(layout: &ArenaLayout, most: usize) -> impl Iterator<Item = Range<usize>> {
    let layout = *layout;
    let after = move |slot: u32| layout.payload_offset(SlotId(slot + 1));
    let (mut start, mut slot) = (0, 0);
    std::iter::from_fn(move || {
        let whole = layout.file_bytes();
        if start == whole {
            return None;
        }
        let begin = start;
        while let Some(end) = after(slot) {
            slot += 1;
            let next = after(slot).unwrap_or(whole);
            if next - begin > most {
                start = end;
                return Some(begin..end);
            }
        }
        start = whole;
        Some(begin..whole)
    })
}

#[cfg(test)]
mod tests {
    use flexkv_block::NamespaceId;

    use super::*;

    fn layout(slots: u32, block_bytes: u64) -> ArenaLayout {
        ArenaLayout::new(1, NamespaceId::from_u128(2), slots, block_bytes, u64::MAX)
            .expect("a layout")
    }

    fn all(slots: u32, block_bytes: u64, most: usize) -> Vec<(usize, usize)> {
        let layout = layout(slots, block_bytes);
        let chunks = chunks(&layout, most);
        chunks.map(|chunk| (chunk.start, chunk.end)).collect()
    }

    #[test]
    fn a_small_arena_is_one_chunk() {
        let whole = layout(100, 5000).file_bytes();
        assert_eq!(all(100, 5000, 1 << 30), [(0, whole)]);
        assert_eq!(all(1, 1, 1), [(0, layout(1, 1).file_bytes())]);
    }

    #[test]
    fn chunks_follow_each_other_and_hold_whole_slots() {
        for (slots, block_bytes, most) in [
            (5, 4096, 8192),
            (5, 4096, 12_288),
            (64, 64, 4096),
            (1000, 100, 20_000),
            (3, 1 << 20, 1),
        ] {
            let layout = layout(slots, block_bytes);
            let chunks = all(slots, block_bytes, most);
            let case = format!("{slots} slots of {block_bytes}, {most} a chunk: {chunks:?}");
            assert!(chunks.len() > 1, "{case}");
            let ends: Vec<_> = chunks.iter().map(|chunk| chunk.1).collect();
            let starts: Vec<_> = chunks.iter().map(|chunk| chunk.0).collect();
            assert_eq!(starts[1..], ends[..ends.len() - 1], "{case}");
            assert_eq!((starts[0], ends[ends.len() - 1]), (0, layout.file_bytes()));
            for slot in 0..slots {
                let offset = layout.payload_offset(SlotId(slot)).expect("a slot");
                let end = offset + layout.block_bytes();
                let holds = |chunk: &&(usize, usize)| chunk.0 <= offset && end <= chunk.1;
                assert_eq!(chunks.iter().filter(holds).count(), 1, "{case}");
            }
            assert!(chunks[0].1 > layout.payload_offset(SlotId(0)).expect("a slot"));
        }
    }
}
