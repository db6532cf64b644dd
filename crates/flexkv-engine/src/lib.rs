//! Engine adapter: the local protocol between engine processes and the node.
//!
//! One [`EngineServer`] per node serves any [`flexkv_ports::KvCache`] on a Unix socket; each engine
//! process attaches with an [`EngineClient`], which is a `KvCache` again. Requests and answers go
//! over the socket, block bytes never do: the node hands every engine the memory file of its arena,
//! and the answers say where in it the blocks lie.
//!
//! Knows nothing of peers, tiers, the index, or what an engine does with the bytes.

mod client;
mod lock;
mod mapping;
mod server;
mod stream;
pub mod wire;

pub use client::EngineClient;
pub use server::{EngineServer, ServerConfig, StartError};
