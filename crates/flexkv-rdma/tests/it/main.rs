//! The transport, end to end. With the feature `verbs` over the device of this machine, as
//! `cargo xtask rdma` does in a virtual machine; without it over one that is made of memory.

mod conformance;
mod counts;
mod faults;
mod greeting;
#[cfg(feature = "verbs")]
mod processes;
mod proxy;
#[cfg(not(feature = "verbs"))]
mod soft;
#[cfg(not(feature = "verbs"))]
mod stalls;
mod support;
