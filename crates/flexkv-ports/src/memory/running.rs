//! The checksum of memory that is filled from front to back, or lies there already.
//!
//! In place where the CPU is good at that, else by way of private copies that stay in the first cache.
//! Knows nothing of who fills the memory.

use flexkv_block::{Checksum, ChecksumStream};

use super::MemorySlice;
#[cfg(target_arch = "x86_64")]
use super::sum::Sums;

/// Bytes copied at a time.
const PIECE: usize = 4096;
/// How far ahead bytes are asked for.
const AHEAD: usize = 8192;
/// Bytes hashed before more are asked for.
const STEP: usize = 1024;

/// A checksum being computed of one slice.
#[derive(Debug)]
pub struct RunningChecksum {
    way: Way,
}

#[derive(Debug)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    InPlace(Sums),
    ByPieces {
        /// Half a KiB.
        sum: Box<ChecksumStream>,
        done: usize,
    },
}

impl RunningChecksum {
    /// Of none of the bytes of `slice` yet.
    #[cfg(target_arch = "x86_64")]
    pub fn of(slice: &MemorySlice) -> Self {
        match Sums::new(slice.len()) {
            Some(sums) => Self {
                way: Way::InPlace(sums),
            },
            None => Self::by_pieces(),
        }
    }

    /// Of none of the bytes of `slice` yet.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn of(_slice: &MemorySlice) -> Self {
        Self::by_pieces()
    }

    /// In the way that every CPU can.
    pub(super) fn by_pieces() -> Self {
        let sum = Box::new(Checksum::stream());
        let way = Way::ByPieces { sum, done: 0 };
        Self { way }
    }

    /// The first `to` bytes of `slice`, which must be the same one each time, are there: takes in
    /// those that are new, while they are in cache.
    ///
    /// # Panics
    /// If the slice has fewer bytes.
    pub fn advance(&mut self, slice: &MemorySlice, to: usize) {
        assert!(to <= slice.len(), "more bytes than the slice has");
        match &mut self.way {
            #[cfg(target_arch = "x86_64")]
            Way::InPlace(sums) => {
                if to > 0 {
                    // SAFETY: the slice is mapped while it lives, and `to` is inside it.
                    unsafe { sums.advance(slice.as_ptr(), slice.len(), to) };
                }
            }
            Way::ByPieces { sum, done } => {
                take(sum, slice, *done, to);
                *done = to.max(*done);
            }
        }
    }

    /// The checksum of all of `slice`.
    ///
    /// # Panics
    /// If it is not the one that this was begun with.
    pub fn finish(mut self, slice: &MemorySlice) -> Checksum {
        self.advance(slice, slice.len());
        match self.way {
            #[cfg(target_arch = "x86_64")]
            Way::InPlace(sums) => {
                assert!(Sums::new(slice.len()).is_some(), "another slice");
                // SAFETY: the slice is mapped while it lives, and long enough.
                unsafe { sums.finish(slice.as_ptr(), slice.len()) }
            }
            Way::ByPieces { sum, .. } => sum.finish(),
        }
    }
}

/// Takes in the bytes `from..to`.
fn take(sum: &mut ChecksumStream, slice: &MemorySlice, from: usize, to: usize) {
    let mut piece = [0u8; PIECE];
    slice.prefetch(from, AHEAD);
    for at in (from..to).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(to - at)];
        slice.read(at, piece);
        for (number, step) in piece.chunks(STEP).enumerate() {
            slice.prefetch(at + number * STEP + AHEAD, STEP);
            sum.update(step);
        }
    }
}

#[cfg(test)]
mod tests;
