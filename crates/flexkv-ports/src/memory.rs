//! Memory that several threads or processes may share: bytes are copied in and out, never borrowed.
//!
//! Another process may write a shared mapping at any moment, so no `&[u8]` into it may exist. All
//! access goes through raw copies here, through the hash of what lies there (`running`), or through
//! `as_ptr` in adapters that hand addresses to the kernel. Knows nothing of slots or blocks.

mod past_caches;
mod running;
#[cfg(target_arch = "x86_64")]
mod sum;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use flexkv_block::Checksum;

pub use self::past_caches::{PastCaches, copy_past_caches};
pub use self::running::RunningChecksum;

/// A stable mapping of readable and writable memory.
///
/// # Safety
/// `base()..base() + len()` must stay mapped, readable and writable for as long as the value
/// lives, and `base()` and `len()` must never change.
pub unsafe trait Memory: Send + Sync + 'static {
    /// The first byte.
    fn base(&self) -> *mut u8;

    /// Bytes of the mapping.
    fn len(&self) -> usize;

    /// Whether the mapping has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file behind the mapping, if there is one; byte 0 of the file is `base()`.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A range of a [`Memory`], which it keeps mapped.
#[derive(Clone)]
pub struct MemorySlice {
    memory: Arc<dyn Memory>,
    offset: usize,
    len: usize,
}

impl MemorySlice {
    /// The bytes `offset..offset + len` of `memory`; `None` if they are not inside it.
    pub fn new(memory: Arc<dyn Memory>, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > memory.len() {
            None
        } else {
            Some(Self {
                memory,
                offset,
                len,
            })
        }
    }

    /// The mapping this is a range of.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Where the range begins in its mapping.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes of the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for adapters that pass it to the kernel. Valid while `self` or a
    /// clone of it lives; other processes may read and write there at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `new` checked that offset is inside the mapping.
        unsafe { self.memory.base().add(self.offset) }
    }

    /// The part `at..at + len` of this range.
    ///
    /// # Panics
    /// If the part is not inside the range.
    pub fn part(&self, at: usize, len: usize) -> Self {
        assert!(
            at <= self.len && len <= self.len - at,
            "part outside of its slice"
        );
        Self {
            memory: self.memory.clone(),
            offset: self.offset + at,
            len,
        }
    }

    /// Copies `out.len()` bytes, beginning at byte `at` of the range, into `out`.
    ///
    /// # Panics
    /// If the bytes are not inside the range.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        assert!(
            at <= self.len && out.len() <= self.len - at,
            "read outside of its slice"
        );
        // SAFETY: source is mapped (checked above), destination is a unique borrow of private
        // memory, so the two cannot overlap. A racing writer makes the bytes stale or torn, which
        // every caller detects by checksum.
        unsafe {
            std::ptr::copy_nonoverlapping(self.as_ptr().add(at), out.as_mut_ptr(), out.len());
        }
    }

    /// Copies `bytes` to byte `at` of the range.
    ///
    /// # Panics
    /// If they do not fit inside the range.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(
            at <= self.len && bytes.len() <= self.len - at,
            "write outside of its slice"
        );
        // SAFETY: destination is mapped (checked above); source is a borrow of private memory, so
        // the two cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr().add(at), bytes.len());
        }
    }

    /// Copies all bytes of `from` to the start of this range, through a small private buffer.
    ///
    /// # Panics
    /// If `from` is longer than this range.
    pub fn write_from(&self, from: &Self) {
        from.for_each_piece(|at, piece| self.write(at, piece));
    }

    /// All bytes of the range.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.read(0, &mut out);
        out
    }

    /// Checksum of the bytes as they are now. They are asked for from memory ahead of time, which
    /// saves a fifth of the time if they are in no cache.
    pub fn checksum(&self) -> Checksum {
        RunningChecksum::of(self).finish(self)
    }

    /// Asks for the bytes `at..at + len`, as far as they are in the range, to be in the second cache
    /// soon.
    fn prefetch(&self, at: usize, len: usize) {
        let end = at.saturating_add(len).min(self.len);
        if at < end {
            prefetch(self.as_ptr().wrapping_add(at), end - at);
        }
    }

    /// Calls `each` with successive copies of the bytes, small enough to stay in cache.
    fn for_each_piece(&self, mut each: impl FnMut(usize, &[u8])) {
        let mut piece = [0u8; 4096];
        let mut at = 0;
        while at < self.len {
            let n = piece.len().min(self.len - at);
            self.read(at, &mut piece[..n]);
            each(at, &piece[..n]);
            at += n;
        }
    }
}

/// Asks for the bytes at an address to be in the second cache soon; of any address, as nothing is
/// read that the program could see.
pub fn prefetch(from: *const u8, len: usize) {
    const LINE: usize = 64;
    for at in (0..len).step_by(LINE) {
        prefetch_line(from.wrapping_add(at));
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

impl std::fmt::Debug for MemorySlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemorySlice({}+{})", self.offset, self.len)
    }
}

#[cfg(test)]
mod tests;
