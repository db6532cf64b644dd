//! Which blocks are in a directory that was closed, killed or cut off: what a good journal tells, or
//! else what the frames themselves prove.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use flexkv_ports::{HeapMemory, MemorySlice};

use crate::format::{self, Geometry, Held, PAGE};
use crate::journal;
use crate::segments::Segments;

/// Reads in flight, each with a thread that looks at what came: a device that is asked for one thing
/// at a time is slow.
const THREADS: usize = 4;

/// Bytes read at a time, or one slot.
const READ_BYTES: usize = 4 << 20;

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
    let next = AtomicU32::new(0);
    let work = || {
        let len = at_once as usize * stride;
        let buffer = Arc::new(HeapMemory::new(len));
        let buffer = MemorySlice::new(buffer, 0, len).unwrap_or_else(|| unreachable!("all of it"));
        let mut found = Vec::new();
        loop {
            let first = next.fetch_add(at_once, Ordering::Relaxed);
            if first >= segments.slots {
                return found;
            }
            let end = segments.slots.min(first.saturating_add(at_once));
            read_slots(segments, geometry, first..end, &buffer, &mut found);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
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
    buffer: &MemorySlice,
    found: &mut Vec<Held>,
) {
    let stride = geometry.stride() as usize;
    let there: Vec<u32> = slots
        .filter(|slot| segments.was_there(*slot, geometry))
        .collect();
    let follows = |a: &u32, b: &u32| a + 1 == *b && geometry.place(*a).0 == geometry.place(*b).0;
    for run in there.chunk_by(follows) {
        let whole = buffer.part(0, run.len() * stride);
        let at_once = read_at(segments, geometry, run[0], &whole).is_ok();
        for (place, slot) in run.iter().enumerate() {
            let bytes = buffer.part(place * stride, stride);
            if at_once || read_at(segments, geometry, *slot, &bytes).is_ok() {
                found.extend(whole_block(segments, geometry, *slot, &bytes));
            }
        }
    }
}

/// Fills `buffer` from where `slot` begins.
fn read_at(
    segments: &Segments,
    geometry: &Geometry,
    slot: u32,
    buffer: &MemorySlice,
) -> io::Result<()> {
    let (segment, at) = geometry.place(slot);
    let file = segments.files.get(segment);
    read_all(file.ok_or(io::ErrorKind::NotFound)?, at, buffer)
}

/// What is in a slot, if its frame and its bytes are whole.
fn whole_block(
    segments: &Segments,
    geometry: &Geometry,
    slot: u32,
    bytes: &MemorySlice,
) -> Option<Held> {
    let mut page = [0; PAGE];
    bytes.read(0, &mut page);
    let held = format::read_frame_page(&page, slot, geometry, segments.epoch)?;
    let block = bytes.part(PAGE, geometry.block_bytes);
    (block.checksum() == held.checksum).then_some(held)
}

/// Fills `buffer`, which direct I/O can use, from the file.
fn read_all(file: &File, at: u64, buffer: &MemorySlice) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = buffer.part(done, buffer.len() - done);
        let offset = (at + done as u64) as libc::off_t;
        // SAFETY: the slice keeps its memory mapped and writable for `len` bytes.
        let n = unsafe { libc::pread(file.as_raw_fd(), rest.as_ptr().cast(), rest.len(), offset) };
        match usize::try_from(n) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}
