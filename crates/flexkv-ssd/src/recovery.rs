//! Which blocks are in a directory that was closed, killed or cut off: what a good journal tells, or
//! else what the frames themselves prove.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use flexkv_block::Checksum;
use rustix::mm::{self, Advice};

use crate::format::{self, Geometry, Held, PAGE};
use crate::journal;
use crate::segments::Segments;

/// Reads in flight, each with a thread that looks at what came. More than there are cores, so that
/// the device has enough to do while some look.
const THREADS: usize = 8;

/// Bytes read at a time, or one slot.
const READ_BYTES: usize = 2 << 20;

/// Bytes of all buffers together, if they are larger than that: then fewer threads read.
const BUFFERS_BYTES: usize = 64 << 20;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// The blocks that are in `segments`.
pub(crate) fn recover(segments: &Segments, geometry: &Geometry) -> Vec<Held> {
    let dir = segments.dir.display();
    let told = journal::read(&segments.dir, segments.epoch, segments.slots);
    let mut found = match told {
        Some(told) if told.trusted => told.held,
        _ => {
            let found = scan(segments, geometry);
            tracing::info!(%dir, blocks = found.len(), "no journal to go by; all slots were read");
            found
        }
    };
    found.retain(|held| segments.was_there(held.slot, geometry));
    let mut keys = HashSet::with_capacity(found.len());
    found.retain(|held| keys.insert(held.key));
    found
}

/// Reads every slot and keeps those with a good frame. Small slots are read many at a time, as a
/// device is slow when it is asked for little.
fn scan(segments: &Segments, geometry: &Geometry) -> Vec<Held> {
    let stride = geometry.stride() as usize;
    let at_once = (READ_BYTES / stride).max(1) as u32;
    let len = at_once as usize * stride;
    let threads = (BUFFERS_BYTES / len).clamp(2, THREADS);
    let next = AtomicU32::new(0);
    let work = || {
        let mut buffer = Buffer::new(len);
        let mut found = Vec::new();
        loop {
            let first = next.fetch_add(at_once, Ordering::Relaxed);
            if first >= segments.slots {
                return found;
            }
            let end = segments.slots.min(first.saturating_add(at_once));
            read_slots(segments, geometry, first..end, buffer.bytes(), &mut found);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let found = threads.into_iter().map(|thread| thread.join());
        found.flat_map(Result::unwrap_or_default).collect()
    })
}

/// Adds what is in these slots to `found`. Those of one file are read together; where that fails, one
/// by one, so that a bad place costs no other slot.
fn read_slots(
    segments: &Segments,
    geometry: &Geometry,
    slots: Range<u32>,
    buffer: &mut [u8],
    found: &mut Vec<Held>,
) {
    let stride = geometry.stride() as usize;
    let there: Vec<u32> = slots
        .filter(|slot| segments.was_there(*slot, geometry))
        .collect();
    let follows = |a: &u32, b: &u32| a + 1 == *b && geometry.place(*a).0 == geometry.place(*b).0;
    for run in there.chunk_by(follows) {
        let whole = &mut buffer[..run.len() * stride];
        let at_once = read_at(segments, geometry, run[0], whole).is_ok();
        for (slot, bytes) in run.iter().zip(whole.chunks_exact_mut(stride)) {
            if at_once || read_at(segments, geometry, *slot, bytes).is_ok() {
                found.extend(whole_block(segments, geometry, *slot, bytes));
            }
        }
    }
}

/// Fills `buffer`, which direct I/O can use, from where `slot` begins.
fn read_at(
    segments: &Segments,
    geometry: &Geometry,
    slot: u32,
    buffer: &mut [u8],
) -> io::Result<()> {
    let (segment, at) = geometry.place(slot);
    let file = segments.files.get(segment);
    file.ok_or(io::ErrorKind::NotFound)?
        .read_exact_at(buffer, at)
}

/// What is in a slot, if its frame and its bytes are whole.
fn whole_block(segments: &Segments, geometry: &Geometry, slot: u32, bytes: &[u8]) -> Option<Held> {
    let (page, block) = bytes.split_at_checked(PAGE)?;
    let held = format::read_frame_page(page, slot, geometry, segments.epoch)?;
    let sum = Checksum::of(&block[..geometry.block_bytes]);
    (sum == held.checksum).then_some(held)
}

/// Memory that a read goes to, on huge pages where the system has them: the kernel then hands the
/// device a few long pieces instead of many pages.
struct Buffer {
    memory: Vec<u8>,
    at: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        // Nothing is touched yet.
        let memory = vec![0u8; len.next_multiple_of(HUGE_PAGE) + HUGE_PAGE];
        let at = memory.as_ptr().align_offset(HUGE_PAGE);
        let mut it = Self { memory, at, len };
        let whole = len.next_multiple_of(HUGE_PAGE);
        let from = it.memory[at..at + whole].as_mut_ptr();
        // SAFETY: the range is in `memory`, and how it is kept changes nothing in it. Where the system
        // refuses, ordinary pages do.
        let _ = unsafe { mm::madvise(from.cast(), whole, Advice::LinuxHugepage) };
        it
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.at..self.at + self.len]
    }
}
