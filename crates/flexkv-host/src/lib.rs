//! Host-memory tier: one shared-memory arena of fixed slots with generations.
//!
//! [`HostTier`] owns the arena, a sealed memory file; [`MappedArena`] is another process's view of
//! it, to which the owner passed the file. The owner keeps what it must rely on (who may reuse which
//! slot, which block is where) in memory of its own; what lies in the file is for others to read,
//! and nothing they write there can confuse the owner.
//!
//! This crate knows nothing of sockets, of how the file gets to another process, or of which block
//! should be evicted.

mod arena;
mod descriptor;
mod error;
mod layout;
mod mapping;
mod slot;
mod tier;

pub use arena::MappedArena;
pub use descriptor::Descriptor;
pub use error::HostError;
pub use layout::ArenaLayout;
pub use tier::{HostConfig, HostTier};
