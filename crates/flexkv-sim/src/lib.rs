//! Seeded simulation of a cluster: the real node code over simulated ports, in virtual time.
//!
//! One seed decides everything: prompts, delays, losses, crashes, flushes. While faults rage, every
//! byte an engine gets is checked; when they have stopped and the cluster had time to converge,
//! checkers look whether each node sees exactly what the live nodes hold, and whether anything
//! leaked. The same seed gives the same event log, byte for byte.
//!
//! This crate knows nothing of real networks, disks or clocks. It is for development only.

mod checkers;
mod cluster;
mod events;
mod faults;
mod network;
mod plant;
mod scenario;
mod workload;

pub use plant::Plant;
pub use scenario::{Options, Report, run};
