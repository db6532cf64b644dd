//! A memory file and its mapping, which live and end together. Knows nothing of what is in it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use flexkv_ports::Memory;
use rustix::fs::{self, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::HostError;

/// What keeps a file at its size for as long as it exists.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A whole file, mapped shared, readable and writable.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Mapping` gives out no
// references into it, only the address.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A new memory file of `len` zeros, sealed against any change of its size.
    pub(crate) fn create(len: usize) -> Result<Self, HostError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = fs::memfd_create("flexkv-arena", flags)
            .map_err(HostError::refused("create a memory file"))?;
        fs::ftruncate(&file, len as u64)
            .map_err(HostError::refused("give the memory file its size"))?;
        fs::fcntl_add_seals(&file, SIZE_SEALS)
            .map_err(HostError::refused("seal the memory file"))?;
        Self::map(file, len)
    }

    /// A mapping of `file`, which came from elsewhere and has `len` bytes.
    pub(crate) fn open(file: OwnedFd, len: usize) -> Result<Self, HostError> {
        // A file that cannot be sealed is refused with EINVAL.
        let seals = fs::fcntl_get_seals(&file).map_err(|_| HostError::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(HostError::NotSealed);
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> Result<Self, HostError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
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
        let mapping = Self { base, len, file };
        // KV bytes have no place in a core dump; if the kernel does not know the advice, they are
        // in it, and nothing else is different.
        let _ = mapping.advise(Advice::LinuxDontDump);
        Ok(mapping)
    }

    /// Asks for huge pages; they are used for pages touched from now on.
    pub(crate) fn use_huge_pages(&self) -> Result<(), Errno> {
        self.advise(Advice::LinuxHugepage)
    }

    /// Takes all memory from the system now instead of page by page at the first use.
    pub(crate) fn populate(&self) -> Result<(), HostError> {
        self.advise(Advice::LinuxPopulateWrite)
            .map_err(HostError::refused(
                "take the arena's memory from the system",
            ))
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is this mapping, and none of the advices used changes its content.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.len, advice) }
    }

    /// The file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

// SAFETY: the mapping is made for `len` bytes, readable and writable, and stays until drop; the
// seals keep the file from becoming shorter than the mapping.
unsafe impl Memory for Mapping {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; whoever uses its address keeps `self` alive.
        // The call can only fail for a range that is no mapping.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
