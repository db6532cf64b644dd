//! Host-memory tier: one shared-memory arena of fixed slots with generations, and the transport
//! between the nodes of one host that reads it in place.
//!
//! [`HostTier`] owns the arena, a sealed memory file; [`MappedArena`] is another process's view of
//! it, to which [`ShareServer`] handed the file. The owner keeps what it must rely on (who may reuse
//! which slot, which block is where) in memory of its own; what lies in the file is for others to
//! read, and nothing they write there can confuse the owner.
//!
//! This crate knows nothing of engines, of other hosts, or of which block should be evicted.

mod arena;
mod copy;
mod descriptor;
mod error;
mod mapping;
mod share;
mod slot;
mod tier;

pub use arena::MappedArena;
pub use error::HostError;
pub use share::{HostTransport, HostTransportConfig, ShareConfig, ShareServer};
pub use tier::{HostConfig, HostTier};
