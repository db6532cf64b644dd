//! The `flexkv` command as a library: it wires the crates of the workspace to running nodes, and
//! plays workloads on them.
//!
//! Nothing of the cache itself is decided here. Other crates never depend on this one, except for
//! the Python wheel, which runs the command.

pub mod bench;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod content;
pub mod demo;
pub mod engine;
pub mod events;
pub mod http;
pub mod instance;
pub mod launch;
mod rdma;
pub mod replay;
pub mod report;
pub mod reset;
pub mod scrape;
pub mod serve;
pub mod trace;
pub mod units;
pub mod workload;
