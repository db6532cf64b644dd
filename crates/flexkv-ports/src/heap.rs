//! In-memory implementations of the seams, for tests, simulation and a cluster in one process.
//!
//! They keep every promise of the traits, are deterministic, and start no task or thread. Nothing
//! here is shared with another process and nothing outlives its value.

mod cache;
mod staged;
mod store;
mod tier;
mod transport;

use std::cell::UnsafeCell;

pub use cache::HeapCache;
pub use staged::HeapStagedTier;
pub use store::HeapStore;
pub use tier::HeapTier;
pub use transport::{HeapHub, HeapTransport};

use crate::Memory;

/// Alignment of a [`HeapMemory`] in bytes; enough for direct I/O.
const PAGE: usize = 4096;

/// One page of zeros to begin with, written through raw pointers only.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE]>);

impl Page {
    fn zeroed() -> Self {
        Self(UnsafeCell::new([0; PAGE]))
    }
}

/// Zeroed, page-aligned memory of this process.
pub struct HeapMemory {
    pages: Box<[Page]>,
    len: usize,
}

// SAFETY: the bytes are reached only through the raw pointer of `Memory::base`, whose users (see
// `Memory`) treat them as shared with concurrent writers.
unsafe impl Sync for HeapMemory {}

impl HeapMemory {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Self {
        let pages = std::iter::repeat_with(Page::zeroed)
            .take(len.div_ceil(PAGE))
            .collect();
        Self { pages, len }
    }
}

// SAFETY: the pages are owned by the value and never reallocated; `len` is at most their size; every
// byte lies in an `UnsafeCell`, so it may be written through a shared reference.
unsafe impl Memory for HeapMemory {
    fn base(&self) -> *mut u8 {
        self.pages.as_ptr().cast::<u8>().cast_mut()
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl std::fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeapMemory({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests;
