//! Shared memory as a transport between nodes of one host: the owner's arena is mapped once, then
//! blocks are copied out of it and verified without a word to the owner. Only what lies in a slower tier
//! the owner is asked to bring to memory first.
//!
//! The protocol of the hand-over: `docs/protocol.md`.

mod address;
mod asks;
mod held;
mod link;
mod server;
mod socket;
mod transport;
mod wire;

pub use server::{ShareConfig, ShareServer};
pub use transport::{HostTransport, HostTransportConfig};

/// First bytes that either side sends.
const MAGIC: [u8; 8] = *b"FKV-SHM\n";
/// Version of the protocol spoken here.
const VERSION: u16 = 2;

#[cfg(test)]
mod tests;
