//! Entries of a node's log: what they say, and their bytes.
//!
//! ```text
//! offset size  field
//!      0    1  magic 0xF7
//!      1    1  version, 1
//!      2    1  kind: 1 checkpoint, 2 end of checkpoint, 3 delta, 4 rotate
//!      3    1  reserved, 0
//!      4    2  number of operations, u16 LE
//!      6    2  number of blocks in all of them, u16 LE
//!      8    8  XXH3-64 of incarnation u64 LE, sequence u64 LE, bytes 0..8, body
//!     16       body
//! ```
//! The incarnation and the sequence are not in the entry; with them in the checksum an entry in
//! another place than its own is as good as damaged. `docs/protocol.md` has the bodies.
//! Knows nothing of where a log is kept or who reads it.

use flexkv_block::Location;
use thiserror::Error;

mod decode;
mod encode;

/// Most blocks of one entry, added or removed.
pub const MAX_ENTRY_BLOCKS: usize = 4096;
/// Most bytes of one entry.
pub const MAX_ENTRY_BYTES: usize = 128 * 1024;

const MAGIC: u8 = 0xF7;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 16;
const KIND_CHECKPOINT: u8 = 1;
const KIND_CHECKPOINT_END: u8 = 2;
const KIND_DELTA: u8 = 3;
const KIND_ROTATE: u8 = 4;
const OP_ADD_FIRST: u8 = 1;
const OP_ADD_AFTER: u8 = 2;
const OP_REMOVE: u8 = 3;

/// Where an entry belongs: which life of which node, and its place in the order of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// The owner's incarnation.
    pub incarnation: u64,
    /// The entry's sequence number.
    pub sequence: u64,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Blocks that the owner held while it made the checkpoint; only adds.
    Checkpoint(Batch),
    /// The checkpoint is complete; from here on the log has deltas.
    CheckpointEnd,
    /// What changed, in this order.
    Delta(Batch),
    /// The log ends here.
    Rotate(Rotate),
}

/// Where the owner goes on. A reader that has applied everything up to this entry knows what was held
/// when the next log's checkpoint was begun, and skips it: what changed since then is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Epoch of the next log, whose first entry has the sequence after this one.
    pub next_epoch: u32,
    /// Sequence of the last entry of the next log that need not be read.
    pub resume_after: u64,
}

/// One operation of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The owner holds these blocks, each the successor of the one before it.
    Add {
        /// The block before the first one; `None` at the start of a prompt.
        parent: Option<u64>,
        /// The blocks' fingerprints.
        fingerprints: &'a [u64],
        /// Where each of them lies.
        locations: &'a [Location],
    },
    /// The owner no longer holds these blocks.
    Remove {
        /// The blocks' fingerprints.
        fingerprints: &'a [u64],
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Add { parent: Option<u64>, blocks: usize },
    Remove { blocks: usize },
}

/// Operations in order, at most [`MAX_ENTRY_BLOCKS`] blocks in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    heads: Vec<Head>,
    fingerprints: Vec<u64>,
    /// Of the added blocks alone.
    locations: Vec<Location>,
}

impl Batch {
    /// Whether there are no operations.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Blocks of all operations.
    pub fn blocks(&self) -> usize {
        self.fingerprints.len()
    }

    /// How many more blocks fit.
    pub fn room(&self) -> usize {
        MAX_ENTRY_BLOCKS - self.fingerprints.len()
    }

    /// Appends an add; one that goes on where the last one ended becomes a part of it.
    ///
    /// # Panics
    /// If the blocks are over [`Self::room`], or not as many as their locations.
    pub fn add(&mut self, parent: Option<u64>, fingerprints: &[u64], locations: &[Location]) {
        assert_eq!(
            fingerprints.len(),
            locations.len(),
            "one location for each block"
        );
        assert!(fingerprints.len() <= self.room(), "batch is full");
        let added = fingerprints.len();
        if added == 0 {
            return;
        }
        let goes_on = parent.is_some() && parent == self.fingerprints.last().copied();
        match self.heads.last_mut() {
            Some(Head::Add { blocks, .. }) if goes_on => *blocks += added,
            _ => self.heads.push(Head::Add {
                parent,
                blocks: added,
            }),
        }
        self.fingerprints.extend_from_slice(fingerprints);
        self.locations.extend_from_slice(locations);
    }

    /// Appends a removal.
    ///
    /// # Panics
    /// If the blocks are over [`Self::room`].
    pub fn remove(&mut self, fingerprints: &[u64]) {
        assert!(fingerprints.len() <= self.room(), "batch is full");
        let removed = fingerprints.len();
        if removed == 0 {
            return;
        }
        match self.heads.last_mut() {
            Some(Head::Remove { blocks }) => *blocks += removed,
            _ => self.heads.push(Head::Remove { blocks: removed }),
        }
        self.fingerprints.extend_from_slice(fingerprints);
    }

    /// The operations in order.
    pub fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        let (mut fingerprints, mut locations) = (&self.fingerprints[..], &self.locations[..]);
        self.heads.iter().map(move |head| match *head {
            Head::Add { parent, blocks } => Op::Add {
                parent,
                fingerprints: take(&mut fingerprints, blocks),
                locations: take(&mut locations, blocks),
            },
            Head::Remove { blocks } => Op::Remove {
                fingerprints: take(&mut fingerprints, blocks),
            },
        })
    }
}

fn take<'a, T>(from: &mut &'a [T], n: usize) -> &'a [T] {
    let (head, rest) = from.split_at(n);
    *from = rest;
    head
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// It says another number of blocks or operations than it has.
    #[error("log entry says {said} {what} but has {found}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The number in the header.
        said: usize,
        /// The number in the body.
        found: usize,
    },
    /// Damaged, or in the wrong place of a log, or in the wrong log.
    #[error("log entry is damaged or misplaced (checksum {found:016x}, computed {computed:016x})")]
    Damaged {
        /// The checksum in the entry.
        found: u64,
        /// The checksum of its place and bytes.
        computed: u64,
    },
    /// An operation on no blocks.
    #[error("log entry has an operation on no blocks")]
    EmptyOperation,
    /// A kind that this build does not know.
    #[error("log entry is of unknown kind {found}")]
    Kind {
        /// The kind.
        found: u8,
    },
    /// A block that lies nowhere.
    #[error("log entry has an invalid location ({what})")]
    Location {
        /// Which part of it is wrong.
        what: &'static str,
    },
    /// Not a log entry at all.
    #[error("not a log entry (magic {found:#04x})")]
    Magic {
        /// The first byte.
        found: u8,
    },
    /// An operation that may not be in an entry of this kind.
    #[error("log entry has operation {found}, which its kind {kind} does not know")]
    Operation {
        /// The operation.
        found: u8,
        /// The entry's kind.
        kind: u8,
    },
    /// The reserved byte is not 0.
    #[error("log entry has its reserved byte set")]
    Reserved,
    /// Longer than any entry is.
    #[error("log entry of {bytes} bytes is over the limit of {MAX_ENTRY_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More blocks than an entry may have.
    #[error("log entry of {blocks} blocks is over the limit of {MAX_ENTRY_BLOCKS}")]
    TooManyBlocks {
        /// The number in the header.
        blocks: usize,
    },
    /// Bytes after the last operation.
    #[error("log entry has {bytes} bytes after its last operation")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It ends too early.
    #[error("log entry ends within {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Another version.
    #[error("log entry has version {found}; this build reads {VERSION}")]
    Version {
        /// The version in the entry.
        found: u8,
    },
}

#[cfg(test)]
mod tests;
