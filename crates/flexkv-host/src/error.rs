//! What can be wrong with an arena, and with a file that claims to be one.

use flexkv_block::BlockLayout;
use rustix::io::Errno;
use thiserror::Error;

/// Why there is no arena.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// A block must have at least 1 byte and at most [`BlockLayout::MAX_BLOCK_BYTES`].
    #[error(
        "an arena cannot have blocks of {bytes} bytes (1 to {} are possible)",
        BlockLayout::MAX_BLOCK_BYTES
    )]
    BlockBytes {
        /// The size asked for.
        bytes: u64,
    },
    /// An arena must have at least one slot.
    #[error("an arena must have at least one slot")]
    NoSlots,
    /// The arena would not fit into the machine.
    #[error(
        "an arena of {slots} slots of {block_bytes} bytes does not fit into this machine's \
         {memory} bytes of memory"
    )]
    TooLarge {
        /// Slots asked for.
        slots: u32,
        /// Bytes a block.
        block_bytes: u64,
        /// What the machine has.
        memory: u64,
    },
    /// The kernel refused a step.
    #[error("cannot {step}: {errno}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The file is not an arena at all.
    #[error("not an arena (magic {found:02x?})")]
    Magic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// An arena of a version this build does not read.
    #[error("arena version {found} is not readable here (this build reads 1)")]
    Version {
        /// The version in the header.
        found: u16,
    },
    /// The header contradicts itself or its checksum.
    #[error("the arena's header is damaged")]
    Damaged,
    /// The file is shorter or longer than its header says.
    #[error("the arena has {found} bytes where its header says {expected}")]
    Length {
        /// Bytes by the header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The file could be truncated while it is mapped, which would kill whoever touches it.
    #[error("the arena's file is not sealed against shrinking")]
    NotSealed,
}

impl HostError {
    /// For `map_err`: the kernel refused `step`.
    pub(crate) fn refused(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Refused { step, errno }
    }
}
