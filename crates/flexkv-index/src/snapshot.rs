//! The global index in memory: which owners hold which leading blocks of a prompt.
//!
//! One [`SnapshotWriter`] applies what owners publish; any number of [`Snapshot`] handles read at
//! the same time, without locks and without allocating per block. The index stores runs of blocks
//! ("segments"), not blocks, so that the cost of a match is a few cache misses per run.
//!
//! It stores 64-bit fingerprints, so an answer is a hint: whoever fetches a block compares its whole
//! key. Beside a running writer an answer may be shorter than what was there, or mix slightly
//! different times. Deliberately unknown here: nodes, time, tiers, how changes arrive.
//!
//! - `segment`: a run of blocks and who holds which of them, behind a sequence lock.
//! - `heads`: from a block to the segment that begins with it; what readers use.
//! - `matching`, `choice`: the walk down the segments, and which owner to take blocks from.
//! - `writer`, `store`, `blocks`: the writer, its half of the segments, its table of all blocks.
//! - `memory`: words that never move. `arena`: arrays of them. `owners`: owner ids and sets.

mod arena;
mod blocks;
mod choice;
mod heads;
mod matching;
mod memory;
mod owners;
mod segment;
mod store;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use flexkv_block::{BlockKey, Location};

use heads::Heads;
use memory::{Chunks, Line, Words};
use owners::LiveOwners;

pub use owners::{MAX_OWNERS, OwnerId, OwnerSet};
pub use writer::SnapshotWriter;

/// Most blocks in a segment. Larger ones make matches no faster.
const MAX_SEGMENT_LEN: usize = 512;

/// An empty index: its one writer and a first reader.
pub fn snapshot() -> (SnapshotWriter, Snapshot) {
    with_max_segment_len(MAX_SEGMENT_LEN)
}

fn with_max_segment_len(max_segment_len: usize) -> (SnapshotWriter, Snapshot) {
    let shared = Arc::new(Shared {
        words: Words::new(),
        segments: Chunks::new(),
        heads: Heads::new(),
        live: CachePadded::default(),
        stats: CachePadded::default(),
    });
    let writer = SnapshotWriter::new(Arc::clone(&shared), max_segment_len);
    (writer, Snapshot { shared })
}

/// What the writer and the readers share.
struct Shared {
    words: Words,
    segments: Chunks<Line, 6>,
    heads: Heads,
    live: CachePadded<LiveOwners>,
    stats: CachePadded<AtomicStats>,
}

/// Blocks `start..start + len` of a prompt, all held by one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRun {
    /// Who holds them.
    pub owner: OwnerId,
    /// The first block, counted from the prompt's start.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// The leading blocks of a prompt that somebody holds. Reuse it, to reuse its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// How many.
    pub blocks: usize,
    /// Whom to get them from: in order, without a gap, `0..blocks` in all.
    pub runs: Vec<OwnerRun>,
}

/// Whose blocks a match may count on.
#[derive(Clone, Copy, Debug)]
pub struct MatchOptions<'a> {
    /// Its blocks are taken first wherever it holds any: the asking node itself.
    pub prefer: Option<OwnerId>,
    /// Their blocks are not taken at all.
    pub exclude: &'a OwnerSet,
}

/// Numbers about an index, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Segments in use.
    pub segments: usize,
    /// Different blocks stored; a few of them may be held by nobody any more.
    pub blocks: usize,
    /// Blocks held, counted once per owner; those of removed owners until they are swept.
    pub replicas: usize,
    /// Memory used, free arrays included.
    pub bytes: usize,
}

/// The writer's numbers as readers see them; each is right, but not all of the same moment.
#[derive(Default)]
struct AtomicStats {
    segments: AtomicUsize,
    blocks: AtomicUsize,
    replicas: AtomicUsize,
    bytes: AtomicUsize,
}

impl AtomicStats {
    fn store(&self, stats: SnapshotStats) {
        self.segments.store(stats.segments, Ordering::Relaxed);
        self.blocks.store(stats.blocks, Ordering::Relaxed);
        self.replicas.store(stats.replicas, Ordering::Relaxed);
        self.bytes.store(stats.bytes, Ordering::Relaxed);
    }

    fn load(&self) -> SnapshotStats {
        SnapshotStats {
            segments: self.segments.load(Ordering::Relaxed),
            blocks: self.blocks.load(Ordering::Relaxed),
            replicas: self.replicas.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// A reader of the index. Cheap to clone.
#[derive(Clone)]
pub struct Snapshot {
    shared: Arc<Shared>,
}

impl Snapshot {
    /// Finds the longest leading part of `keys` of which every block is held by some live owner
    /// that is not excluded, and whom to get it from: the preferred owner's own blocks first, else
    /// long runs from one owner. Where several owners are equally good, prompts spread over them.
    pub fn match_prefix(
        &self,
        keys: &[BlockKey],
        options: &MatchOptions<'_>,
        out: &mut PrefixMatch,
    ) {
        self.shared.match_prefix(keys, options, out);
    }

    /// Appends where the owner of a run of `keys` has its blocks, one entry per block of the run.
    /// `None` for a block that it holds no longer.
    pub fn locate(&self, keys: &[BlockKey], run: OwnerRun, out: &mut Vec<Option<Location>>) {
        self.shared.locate(keys, run, out);
    }

    /// Appends every run of blocks of `keys` that a live owner holds which is not excluded, several
    /// for an owner that holds several. In order of the first block within parts of the prompt.
    pub fn replicas(&self, keys: &[BlockKey], exclude: &OwnerSet, out: &mut Vec<OwnerRun>) {
        self.shared.replicas(keys, exclude, out);
    }

    /// Replaces `out` by one entry per key: whether the owner holds that block. All false for an
    /// owner that is not live.
    pub fn holds(&self, keys: &[BlockKey], owner: OwnerId, out: &mut Vec<bool>) {
        self.shared.holds(keys, owner, out);
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> SnapshotStats {
        self.shared.stats.load()
    }
}

#[cfg(test)]
mod tests;
