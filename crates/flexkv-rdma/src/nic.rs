//! What a device does for this crate: registers memory, connects queue pairs, and reads.
//!
//! Everything else here is the same whatever implements it. An implementation knows nothing of
//! blocks; this crate knows nothing of how bytes move.

use std::fmt;
use std::sync::Weak;

use flexkv_ports::MemorySlice;
use thiserror::Error;

/// What a device refused, or how a read ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot {step}: {reason}")]
pub struct NicError {
    /// What was tried.
    pub step: &'static str,
    /// What the device, or the system, said.
    pub reason: String,
}

impl NicError {
    /// The failure of `step`.
    pub fn new(step: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            step,
            reason: reason.to_string(),
        }
    }
}

/// What kind of link a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// InfiniBand: ports have local ids.
    InfiniBand = 1,
    /// Ethernet (RoCE): ports have addresses in the form of GIDs.
    Ethernet = 2,
}

impl Link {
    /// The link with this number on the wire.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::InfiniBand),
            2 => Some(Self::Ethernet),
            _ => None,
        }
    }
}

/// Where a port is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAddress {
    /// The kind of its link.
    pub link: Link,
    /// Its local id; 0 on Ethernet.
    pub lid: u16,
    /// Its GID.
    pub gid: [u8; 16],
    /// The largest packet it takes now, as verbs number them: 1 for 256 bytes to 5 for 4096.
    pub mtu: u8,
}

/// Where a queue pair is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddress {
    /// Its port.
    pub port: PortAddress,
    /// Its number, 24 bits.
    pub number: u32,
    /// The number of the first packet that it sends, 24 bits.
    pub first_packet: u32,
}

/// How two queue pairs are connected, as one of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// This side.
    pub ours: QueueAddress,
    /// The other side.
    pub theirs: QueueAddress,
    /// Reads that may be under way at a time.
    pub reads: u8,
    /// What the other side may do with memory that is registered for peers.
    pub theirs_may: Rights,
}

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing: this side reads.
    Nothing,
    /// Read: this side is read.
    Read,
}

/// What a device can do at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Work requests of one queue pair.
    pub work_requests: u32,
    /// Bytes of one read.
    pub message_bytes: u64,
    /// Reads of one queue pair that may be under way at a time.
    pub reads: u8,
}

/// One read of a peer's memory.
#[derive(Clone, Debug)]
pub struct Read {
    /// Where the bytes lie at the peer.
    pub remote: u64,
    /// The key that opens that memory.
    pub remote_key: u32,
    /// Where they go: memory that is registered here.
    pub into: MemorySlice,
    /// The key of that memory.
    pub local_key: u32,
    /// Begins only when all reads before it have ended.
    pub fence: bool,
}

/// Memory that is registered until this is dropped.
pub trait Region: Send + Sync {
    /// The key for reads into it.
    fn local_key(&self) -> u32;

    /// The key with which a peer reads it.
    fn remote_key(&self) -> u32;
}

/// Hears of reads that ended.
pub trait Completions: Send + Sync {
    /// The reads posted as `id` are done; or one has failed, and with it all that the queue pair
    /// still had to do. Called by a thread of the device, which it must not keep for long.
    fn completed(&self, id: u64, outcome: Result<(), NicError>);
}

/// A reliably connected queue pair. Dropping it closes it.
pub trait Pair: Send + Sync {
    /// Its number.
    fn number(&self) -> u32;

    /// Connects it. Once, before anything is posted.
    fn connect(&self, path: &Path) -> Result<(), NicError>;

    /// Begins these reads, in order; whoever listens hears once of all of them. The memory stays
    /// mapped until then, or until the pair is closed.
    fn post(&self, id: u64, reads: Vec<Read>) -> Result<(), NicError>;

    /// Ends it: when this returns no read touches any memory, and nothing is heard of those that
    /// were under way. More than once is as good as once.
    fn close(&self);
}

/// A port of a device.
pub trait Nic: Send + Sync + 'static {
    /// What it is called.
    fn name(&self) -> &str;

    /// Where it is found.
    fn address(&self) -> PortAddress;

    /// What it can do.
    fn limits(&self) -> Limits;

    /// Registers memory, and for as long as the region lives keeps it mapped. Reads may always go
    /// there; peers may read it if `peers_may` says so.
    fn register(&self, part: MemorySlice, peers_may: Rights) -> Result<Box<dyn Region>, NicError>;

    /// A new queue pair for up to `depth` reads at a time.
    fn pair(&self, depth: u32, heard_by: Weak<dyn Completions>) -> Result<Box<dyn Pair>, NicError>;
}
