//! Seeded simulation of a cluster: the real node code over simulated ports, in virtual time.
//!
//! One seed decides everything: prompts, delays, losses, and what befalls nodes, network and store.
//! While faults rage, every byte an engine gets is checked. When they have stopped, the cluster must
//! converge in a stated time; then one more trouble befalls the store, during which no node may lose
//! sight of anything; at last nothing may be left over. The same seed gives the same event log, byte
//! for byte. A second mode runs hundreds of nodes without faults, and measures.
//!
//! This crate knows nothing of real networks, disks or clocks. It is for development only.

mod checkers;
mod cluster;
mod events;
mod faults;
mod network;
mod observer;
mod pauses;
mod plant;
mod scale;
mod scenario;
mod store;
mod workload;

pub use plant::Plant;
pub use scale::{ScaleOptions, scale};
pub use scenario::{Options, Report, run};
