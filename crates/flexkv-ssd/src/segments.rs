//! The files of one directory: found or made, checked, locked. Knows nothing of what is in slots.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use flexkv_block::NamespaceId;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::error::SsdError;
use crate::format::{self, Geometry, PAGE};

/// Where a directory keeps blocks of a namespace and size.
pub(crate) fn folder(path: &Path, namespace: NamespaceId, block_bytes: usize) -> PathBuf {
    path.join(format!("{namespace}-{block_bytes}"))
}

/// The files of one namespace in one directory, held by this process alone.
pub(crate) struct Segments {
    pub(crate) dir: PathBuf,
    pub(crate) files: Vec<File>,
    /// Slots of all files together.
    pub(crate) slots: u32,
    /// How many bytes of each file were there, before it was made or made longer.
    pub(crate) there: Vec<u64>,
    pub(crate) epoch: u64,
    /// Its lock ends with it.
    pub(crate) lock: File,
}

impl Segments {
    /// Opens what is in `path`, and makes what is missing, up to `bytes` in all or as much as the
    /// file system gives.
    /// A directory without a past gets the epoch `fresh`.
    pub(crate) fn open(
        path: &Path,
        bytes: u64,
        geometry: &Geometry,
        fresh: u64,
    ) -> Result<Self, SsdError> {
        let dir = folder(path, geometry.namespace, geometry.block_bytes);
        fs::create_dir_all(&dir).map_err(SsdError::at(&dir, "make the directory"))?;
        let lock = lock(&dir)?;
        let sizes = plan(path, bytes, geometry)?;
        let mut found = Vec::new();
        for (number, slots) in (0u32..).zip(&sizes) {
            found.push(Segment::open(&dir, number, *slots, geometry)?);
        }
        let known = found.iter().find_map(|segment| segment.epoch);
        let epoch = known.unwrap_or(fresh);
        let mut it = Self {
            dir,
            files: Vec::new(),
            slots: 0,
            there: Vec::new(),
            epoch,
            lock,
        };
        for (number, segment) in (0u32..).zip(found) {
            if !it.take(number, segment, geometry)? {
                break;
            }
        }
        if it.slots == 0 {
            return Err(SsdError::TooSmall {
                path: path.to_owned(),
                bytes: 0,
                needed: geometry.segment_bytes(1),
            });
        }
        it.remove_others(sizes.len())?;
        Ok(it)
    }

    /// Gives a segment its size and first page; says whether there may be more after it.
    fn take(
        &mut self,
        number: u32,
        segment: Segment,
        geometry: &Geometry,
    ) -> Result<bool, SsdError> {
        let wanted = segment.slots;
        let same = segment.epoch == Some(self.epoch);
        let got = fit(wanted, |slots| {
            segment.allocate(geometry.segment_bytes(slots))
        })
        .map_err(SsdError::at(&segment.path, "give the file its size"))?;
        if got < wanted {
            let file = segment.path.display();
            tracing::warn!(%file, wanted, got, "the file system is full; the SSD tier is smaller");
        }
        if got == 0 {
            fs::remove_file(&segment.path).ok();
            return Ok(false);
        }
        let page = format::segment_page(geometry, self.epoch, number, got);
        segment.write_first_page(&page)?;
        self.there.push(if same { segment.there } else { 0 });
        self.files.push(segment.file);
        self.slots += got;
        Ok(got == wanted)
    }

    /// Removes files of a time when the directory's share was larger.
    fn remove_others(&self, planned: usize) -> Result<(), SsdError> {
        for number in planned.. {
            let path = segment_path(&self.dir, number as u32);
            match fs::remove_file(&path) {
                Ok(()) => {
                    tracing::info!(file = %path.display(), "removed, the share is smaller now")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(SsdError::at(&path, "remove the file")(error)),
            }
        }
        Ok(())
    }

    /// Whether all bytes of a slot were in its file when that was opened.
    pub(crate) fn was_there(&self, slot: u32, geometry: &Geometry) -> bool {
        let (segment, at) = geometry.place(slot);
        let there = self.there.get(segment).copied().unwrap_or(0);
        at + geometry.stride() <= there
    }
}

/// One file, before it is taken into use.
struct Segment {
    path: PathBuf,
    file: File,
    slots: u32,
    /// Bytes that were there.
    there: u64,
    /// Of the life it belongs to, if its first page is good.
    epoch: Option<u64>,
}

impl Segment {
    fn open(dir: &Path, number: u32, slots: u32, geometry: &Geometry) -> Result<Self, SsdError> {
        let path = segment_path(dir, number);
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags.bits() as i32)
                .open(&path)
        };
        let mut page = vec![0; PAGE];
        let plain = open(OFlags::empty()).map_err(SsdError::at(&path, "open the file"))?;
        let metadata = plain.metadata();
        let there = metadata
            .map_err(SsdError::at(&path, "read its size"))?
            .len();
        let epoch = match plain.read_exact_at(&mut page, 0) {
            Ok(()) => format::segment_epoch(&page, geometry, number),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(SsdError::at(&path, "read its first page")(error)),
        };
        let file = match open(OFlags::DIRECT) {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::info!(file = %path.display(), "no direct I/O here; the page cache is used");
                plain
            }
            Err(error) => return Err(SsdError::at(&path, "open the file")(error)),
        };
        Ok(Self {
            path,
            file,
            slots,
            there,
            epoch,
        })
    }

    fn allocate(&self, bytes: u64) -> Result<(), Errno> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP) => rustix::fs::ftruncate(&self.file, bytes),
            outcome => outcome,
        }
    }

    /// Past the page cache like all else, but through a buffer of the right alignment.
    fn write_first_page(&self, page: &[u8]) -> Result<(), SsdError> {
        let plain = OpenOptions::new().write(true).open(&self.path);
        plain
            .and_then(|file| file.write_all_at(page, 0).and_then(|()| file.sync_data()))
            .map_err(SsdError::at(&self.path, "write its first page"))
    }
}

fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("segment-{number:05}"))
}

/// The most of `wanted` slots, or a half of them and so on, for which the file system has room.
fn fit(wanted: u32, allocate: impl Fn(u32) -> Result<(), Errno>) -> Result<u32, Errno> {
    let mut slots = wanted;
    while slots > 0 {
        match allocate(slots) {
            Err(Errno::NOSPC) => slots /= 2,
            outcome => return outcome.map(|()| slots),
        }
    }
    Ok(0)
}

/// Slots of each segment that fits into a share of `bytes`.
fn plan(path: &Path, bytes: u64, geometry: &Geometry) -> Result<Vec<u32>, SsdError> {
    let full = geometry.segment_bytes(geometry.per_segment);
    let mut sizes = vec![geometry.per_segment; (bytes / full) as usize];
    let rest = (bytes % full).saturating_sub(PAGE as u64) / geometry.stride();
    if rest > 0 {
        sizes.push(rest as u32);
    }
    if sizes.is_empty() {
        return Err(SsdError::TooSmall {
            path: path.to_owned(),
            bytes,
            needed: geometry.segment_bytes(1),
        });
    }
    Ok(sizes)
}

fn lock(dir: &Path) -> Result<File, SsdError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(SsdError::at(&path, "open the file"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SsdError::InUse {
            path: dir.to_owned(),
        }),
        Err(errno) => Err(SsdError::at(&path, "lock the file")(errno)),
    }
}

#[cfg(test)]
mod tests;
