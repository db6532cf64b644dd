//! A memory file of the test's own as an arena: sealed against shrinking, as a node's is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use flexkv_ports::Memory;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub(crate) struct MemfdMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

impl MemfdMemory {
    pub(crate) fn new(len: usize) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("flexkv-test", flags).expect("memfd");
        ftruncate(&file, len as u64).expect("truncate");
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("seal");
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
        };
        let base = NonNull::new(base.expect("mmap").cast()).expect("an address");
        Self { base, len, file }
    }
}

// SAFETY: mapped in `new`, never moved, unmapped only on drop; the file cannot shrink.
unsafe impl Memory for MemfdMemory {
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

// SAFETY: the address is plain data; the bytes are only copied.
unsafe impl Send for MemfdMemory {}
// SAFETY: as above.
unsafe impl Sync for MemfdMemory {}

impl Drop for MemfdMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; slices of it hold this value.
        unsafe { munmap(self.base.as_ptr().cast(), self.len) }.expect("munmap");
    }
}
