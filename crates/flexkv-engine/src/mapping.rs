//! The node's arena, mapped into the engine's process.
//!
//! Knows nothing of who sent the file or what lies in it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use flexkv_ports::Memory;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Why `file` cannot serve as an arena of `bytes` bytes that stays mapped for good: it is not a
/// memory file, could be cut, or is too short. Touching memory behind the end of a file kills the
/// process, so both sides insist.
pub(crate) fn check(file: BorrowedFd<'_>, bytes: u64) -> Result<(), String> {
    if bytes == 0 {
        return Err("the arena has no bytes".to_owned());
    }
    let seals = fcntl_get_seals(file)
        .map_err(|error| format!("the arena is not a memory file: {error}"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err("the arena's memory file is not sealed against shrinking".to_owned());
    }
    let stat = fstat(file).map_err(|error| format!("the arena's size is unknown: {error}"))?;
    match u64::try_from(stat.st_size) {
        Ok(size) if size >= bytes => Ok(()),
        _ => Err(format!(
            "the arena's memory file has {} bytes instead of {bytes}",
            stat.st_size
        )),
    }
}

/// A shared, writable mapping of a whole arena.
pub(crate) struct ArenaMapping {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

impl ArenaMapping {
    /// Maps the first `bytes` bytes of `file`, which must pass [`check`].
    pub(crate) fn map(file: OwnedFd, bytes: u64) -> Result<Self, String> {
        check(file.as_fd(), bytes)?;
        let len = usize::try_from(bytes).map_err(|_| format!("arena of {bytes} bytes"))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .map_err(|error| format!("cannot map the arena's {bytes} bytes: {error}"))?;
        let base = NonNull::new(base.cast()).ok_or("the arena was mapped at address 0")?;
        Ok(Self { base, len, file })
    }
}

// SAFETY: the mapping is made in `map`, never moved, and unmapped only when the value is dropped;
// it is readable and writable, and the seal keeps the file from shrinking under it.
unsafe impl Memory for ArenaMapping {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

// SAFETY: the address is plain data; all access to the bytes goes through raw copies.
unsafe impl Send for ArenaMapping {}
// SAFETY: as above; nothing here changes after `map`.
unsafe impl Sync for ArenaMapping {}

impl Drop for ArenaMapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and nobody can use it any more: every
        // `MemorySlice` holds this value.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::warn!(%error, bytes = self.len, "the arena could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests;
