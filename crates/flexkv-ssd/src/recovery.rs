//! Which blocks are in a directory that was closed, killed or cut off: what a good journal tells, or
//! else what the frames themselves prove.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use flexkv_ports::{HeapMemory, MemorySlice};

use crate::format::{self, Geometry, Held, PAGE};
use crate::journal;
use crate::segments::Segments;

/// More threads than this only wait for the device.
const THREADS_MAX: usize = 4;

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

/// Reads every slot and keeps those with a good frame.
fn scan(segments: &Segments, geometry: &Geometry) -> Vec<Held> {
    let next = AtomicU32::new(0);
    let work = || {
        let buffer = Arc::new(HeapMemory::new(geometry.stride() as usize));
        let slot_bytes = MemorySlice::new(buffer, 0, geometry.stride() as usize)
            .unwrap_or_else(|| unreachable!("all of it"));
        let mut found = Vec::new();
        loop {
            let slot = next.fetch_add(1, Ordering::Relaxed);
            if slot >= segments.slots {
                return found;
            }
            if segments.was_there(slot, geometry) {
                found.extend(read_slot(segments, geometry, slot, &slot_bytes));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(THREADS_MAX))
            .map(|_| scope.spawn(work))
            .collect();
        let found = threads.into_iter().map(|thread| thread.join());
        found.flat_map(Result::unwrap_or_default).collect()
    })
}

/// What is in a slot, if its frame and its bytes are whole.
fn read_slot(
    segments: &Segments,
    geometry: &Geometry,
    slot: u32,
    buffer: &MemorySlice,
) -> Option<Held> {
    let (segment, at) = geometry.place(slot);
    read_all(segments.files.get(segment)?, at, buffer).ok()?;
    let mut page = [0; PAGE];
    buffer.read(0, &mut page);
    let held = format::read_frame_page(&page, slot, geometry, segments.epoch)?;
    let block = buffer.part(PAGE, geometry.block_bytes);
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
