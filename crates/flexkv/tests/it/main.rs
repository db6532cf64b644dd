//! The `flexkv` command as a user runs it: whole processes, real sockets, a real Redis.
//!
//! Knows the command's arguments, output and exit codes; nothing here calls into its modules, but
//! for the engine client that attaches to node processes.

mod bench;
mod bench_serve;
mod cables;
mod completions;
mod damage;
mod demo;
mod faults;
mod harness;
mod model;
mod network;
mod node;
mod partition;
mod replay;
mod reset;
mod serve;
mod ssd;
mod store_faults;
mod store_kinds;
mod usage;
