//! Blocks of other hosts by RDMA: the reader's device takes them out of the owner's arena, and
//! nothing runs at the owner meanwhile.
//!
//! [`RdmaServer`] lets readers in: each greets over TCP, proves that it knows the cluster's secret,
//! and only then learns where the arena lies and which keys open it. [`RdmaTransport`] reads
//! descriptor, payload and descriptor of each block straight into the slot it is for, and verifies
//! what came. The device is behind [`Nic`]; `verbs`, a feature, is the real one.
//!
//! This crate knows nothing of the index, of other owners, or of which block should go.

mod address;
mod arena;
mod board;
mod counts;
mod devices;
mod greeting;
mod nic;
mod peer;
mod plan;
mod queue;
mod server;
mod transport;
#[cfg(feature = "verbs")]
mod verbs;
mod wire;

pub use arena::RdmaArena;
pub use counts::{RdmaCounters, RdmaCounts};
pub use devices::{Choice, DeviceReport, GidReport, PortReport, Survey, bound_numa_node};
pub use nic::{
    Completions, Limits, Link, Nic, NicError, Pair, Path, PortAddress, QueueAddress, Read, Region,
    Rights,
};
pub use server::{RdmaServer, RdmaServerConfig};
pub use transport::{RdmaConfig, RdmaTransport};
#[cfg(feature = "verbs")]
pub use verbs::{VerbsNic, usable};
