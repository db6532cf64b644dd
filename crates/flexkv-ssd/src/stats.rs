//! What a tier counts. Knows nothing of how figures are shown.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the tier was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SsdStats {
    /// Blocks written.
    pub written_blocks: u64,
    /// Blocks read and verified.
    pub read_blocks: u64,
    /// Blocks found at opening.
    pub recovered_blocks: u64,
    /// Reads whose bytes were not those written.
    pub corrupt_blocks: u64,
    /// Transfers that the system refused.
    pub io_errors: u64,
    /// Writes not taken because too many were waiting.
    pub refused_busy: u64,
    /// Slots that are not used any more because they failed.
    pub lost_slots: u64,
    /// Directories that are not used any more because they failed.
    pub lost_dirs: u64,
}

impl SsdStats {
    /// The sums of two tiers.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            written_blocks: self.written_blocks + other.written_blocks,
            read_blocks: self.read_blocks + other.read_blocks,
            recovered_blocks: self.recovered_blocks + other.recovered_blocks,
            corrupt_blocks: self.corrupt_blocks + other.corrupt_blocks,
            io_errors: self.io_errors + other.io_errors,
            refused_busy: self.refused_busy + other.refused_busy,
            lost_slots: self.lost_slots + other.lost_slots,
            lost_dirs: self.lost_dirs + other.lost_dirs,
        }
    }
}

/// The counters behind [`SsdStats`].
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) written_blocks: AtomicU64,
    pub(crate) read_blocks: AtomicU64,
    pub(crate) recovered_blocks: AtomicU64,
    pub(crate) corrupt_blocks: AtomicU64,
    pub(crate) io_errors: AtomicU64,
    pub(crate) refused_busy: AtomicU64,
    pub(crate) lost_slots: AtomicU64,
    pub(crate) lost_dirs: AtomicU64,
}

/// Counts `n` more.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Stats {
    pub(crate) fn read(&self) -> SsdStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SsdStats {
            written_blocks: get(&self.written_blocks),
            read_blocks: get(&self.read_blocks),
            recovered_blocks: get(&self.recovered_blocks),
            corrupt_blocks: get(&self.corrupt_blocks),
            io_errors: get(&self.io_errors),
            refused_busy: get(&self.refused_busy),
            lost_slots: get(&self.lost_slots),
            lost_dirs: get(&self.lost_dirs),
        }
    }
}
