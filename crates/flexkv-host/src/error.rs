//! What can be wrong with an arena, and with a file that claims to be one.

use flexkv_block::ArenaError;
use rustix::io::Errno;
use thiserror::Error;

/// Why there is no arena.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// Its size is not possible, or its header is not that of an arena.
    #[error(transparent)]
    Layout(#[from] ArenaError),
    /// The kernel refused a step.
    #[error("cannot {step}: {errno}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
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
