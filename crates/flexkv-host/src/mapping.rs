//! A memory file and its mapping, which live and end together. Knows nothing of what is in it.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use flexkv_ports::Memory;
use rustix::fs::{self, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::HostError;

/// What keeps a file at its size for as long as it exists.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A whole file, mapped shared, readable at least.
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Region` gives out no
// references into it, only the address.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A mapping, to be read only, of `file`, which came from elsewhere and has `len` bytes.
    pub(crate) fn open(file: OwnedFd, len: usize) -> Result<Self, HostError> {
        // A file that cannot be sealed is refused with EINVAL.
        let seals = fs::fcntl_get_seals(&file).map_err(|_| HostError::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(HostError::NotSealed);
        }
        Self::map(file, len, ProtFlags::READ)
    }

    fn map(file: OwnedFd, len: usize, protection: ProtFlags) -> Result<Self, HostError> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let base = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let base = base.map_err(HostError::refused("map the memory file"))?;
        let base = NonNull::new(base.cast()).ok_or(HostError::Refused {
            step: "map the memory file anywhere but at address 0",
            errno: Errno::NOMEM,
        })?;
        let region = Self { base, len, file };
        // KV bytes have no place in a core dump; if the kernel does not know the advice, they are
        // in it, and nothing else is different.
        let _ = region.advise(Advice::LinuxDontDump);
        Ok(region)
    }

    /// The first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes that others may write meanwhile.
    ///
    /// # Panics
    /// If they are not inside the mapping.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(
            offset <= self.len && out.len() <= self.len - offset,
            "read outside of the mapping"
        );
        // SAFETY: the source is mapped (checked above), the destination a unique borrow of private
        // memory, so the two cannot overlap. Bytes torn by a racing writer are found by checksum.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base().add(offset), out.as_mut_ptr(), out.len());
        }
    }

    /// Asks for the bytes `offset..offset + len`, as far as they are inside, to be in the second
    /// cache soon.
    pub(crate) fn prefetch(&self, offset: usize, len: usize) {
        const LINE: usize = 64;
        let end = offset.saturating_add(len).min(self.len);
        for at in (offset..end).step_by(LINE) {
            prefetch_line(self.base().wrapping_add(at));
        }
    }

    /// Takes all pages into this process's page table now, if the file has all its memory already:
    /// otherwise that would take memory which the owner may never need.
    pub(crate) fn populate_read(&self) -> Result<(), HostError> {
        let stat = fs::fstat(&self.file).map_err(HostError::refused("ask for the file's size"))?;
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if allocated < self.len as u64 {
            return Ok(());
        }
        self.advise(Advice::LinuxPopulateRead)
            .map_err(HostError::refused("take the arena into the page table"))
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is this mapping, and none of the advices used changes its content.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.len, advice) }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch_line(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch reads nothing that the program could see, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_: *const u8) {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; whoever uses its address keeps `self` alive.
        // The call can only fail for a range that is no mapping.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The owner's mapping of its own file, readable and writable.
pub(crate) struct Mapping(Arc<Region>);

impl Mapping {
    /// A new memory file of `len` zeros, sealed against any change of its size. Other users cannot
    /// open it anew for writing through a descriptor that they were given for reading.
    pub(crate) fn create(len: usize) -> Result<Self, HostError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = fs::memfd_create("flexkv-arena", flags)
            .map_err(HostError::refused("create a memory file"))?;
        fs::fchmod(&file, Mode::RUSR | Mode::WUSR)
            .map_err(HostError::refused("keep the memory file private"))?;
        fs::ftruncate(&file, len as u64)
            .map_err(HostError::refused("give the memory file its size"))?;
        fs::fcntl_add_seals(&file, SIZE_SEALS)
            .map_err(HostError::refused("seal the memory file"))?;
        let region = Region::map(file, len, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self(Arc::new(region)))
    }

    /// The mapped bytes.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.0
    }

    /// Asks for huge pages; they are used for pages touched from now on.
    pub(crate) fn use_huge_pages(&self) -> Result<(), Errno> {
        self.0.advise(Advice::LinuxHugepage)
    }

    /// Takes all memory from the system now instead of page by page at the first use.
    pub(crate) fn populate(&self) -> Result<(), HostError> {
        self.0
            .advise(Advice::LinuxPopulateWrite)
            .map_err(HostError::refused(
                "take the arena's memory from the system",
            ))
    }

    /// The file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }

    /// Another descriptor of the file, through which nobody can write to it.
    pub(crate) fn read_only_file(&self) -> Result<OwnedFd, HostError> {
        let path = format!("/proc/self/fd/{}", self.file().as_raw_fd());
        fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(HostError::refused("open the memory file for reading"))
    }
}

// SAFETY: the mapping is made for `len` bytes, readable and writable, and stays until drop; the
// seals keep the file from becoming shorter than the mapping.
unsafe impl Memory for Mapping {
    fn base(&self) -> *mut u8 {
        self.0.base()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file())
    }
}
