//! A memory file and its mapping, which live and end together. Knows nothing of what is in it.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::Memory;
use rustix::fs::{self, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use tokio::time::Instant;

use crate::HostError;

/// Bytes of an ordinary page, or a part of one.
const PAGE: usize = 4096;
/// A shared mapping in place of what is there.
const SHARED_HERE: MapFlags = MapFlags::SHARED.union(MapFlags::FIXED);
/// What keeps a file at its size for as long as it exists.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Bytes of a huge page. What is smaller than one gains nothing from its address.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// How long the kernel may take to find huge pages: a start must not wait for all of a fragmented
/// machine to be tidied up.
const HUGE_PATIENCE: Duration = Duration::from_secs(20);

/// A whole file, mapped shared, readable at least. A mapping of some size begins where a huge page
/// could, as otherwise none of it can lie on one.
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
        let base = map_aligned(&file, len, protection)
            .map_err(HostError::refused("map the memory file"))?;
        let base = NonNull::new(base).ok_or(HostError::Refused {
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
        let end = offset.saturating_add(len).min(self.len);
        let from = self.base().wrapping_add(offset);
        flexkv_ports::prefetch(from, end.saturating_sub(offset));
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

/// Maps the file at an address that suits huge pages.
fn map_aligned(file: &OwnedFd, len: usize, protection: ProtFlags) -> Result<*mut u8, Errno> {
    let spare = if len < HUGE_PAGE { 0 } else { HUGE_PAGE };
    let nothing = std::ptr::null_mut();
    // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
    let reserved =
        unsafe { mm::mmap_anonymous(nothing, len + spare, ProtFlags::empty(), MapFlags::PRIVATE)? };
    let before = reserved.cast::<u8>().align_offset(HUGE_PAGE).min(spare);
    let base = reserved.wrapping_byte_add(before);
    // SAFETY: what is replaced is a part of the range just reserved, which nobody else knows.
    let mapped = unsafe { mm::mmap(base, len, protection, SHARED_HERE, file, 0) };
    let end = len.next_multiple_of(PAGE);
    let (from, to) = match mapped {
        Ok(_) => (before + end, len + spare),
        Err(_) => (before, len + spare),
    };
    for (from, to) in [(0, before), (from, to)] {
        if from < to {
            // SAFETY: what is left of the reserved range; nobody else knows it.
            let _ = unsafe { mm::munmap(reserved.wrapping_byte_add(from), to - from) };
        }
    }
    mapped.map(<*mut _>::cast)
}

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

    /// Asks for huge pages, where the system gives them to memory files at their first use.
    pub(crate) fn use_huge_pages(&self) {
        // A kernel that knows none uses ordinary ones.
        let _ = self.0.advise(Advice::LinuxHugepage);
    }

    /// Takes memory in huge pages now, from the front, as far as the kernel finds them in time; says
    /// how many bytes. Unlike [`Self::use_huge_pages`] that works whatever the system does with
    /// memory files by itself.
    pub(crate) fn populate_huge(&self) -> usize {
        let began = Instant::now();
        let mut done = 0;
        while done + HUGE_PAGE <= self.0.len() && began.elapsed() < HUGE_PATIENCE {
            let here = self.0.base().wrapping_add(done).cast();
            // SAFETY: the range is in this mapping; its content stays. There must be a page in it,
            // and then the kernel puts all of it into one.
            let joined = unsafe {
                mm::madvise(here, PAGE, Advice::LinuxPopulateWrite).is_ok()
                    && libc::madvise(here, HUGE_PAGE, libc::MADV_COLLAPSE) == 0
            };
            if !joined {
                break;
            }
            done += HUGE_PAGE;
        }
        done
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
