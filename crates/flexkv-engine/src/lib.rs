//! Engine adapter: the local protocol between engine processes and the node.
//!
//! One [`EngineServer`] per node serves any [`flexkv_ports::KvCache`] on a Unix socket; each engine
//! process attaches with an [`EngineClient`], which is a `KvCache` again. Requests and answers go
//! over the socket, block bytes never do: the node hands every engine the memory file of its arena,
//! and the answers say where in it the blocks lie.
//!
//! On top of it lies what engines use: [`TwoStep`] on the scheduler's side, [`Copier`] on the
//! worker's, which moves blocks between the arena and the engine's KV memory, and [`Attachment`]
//! for threads without async.
//!
//! Knows nothing of peers, tiers, the index, or what an engine does with the bytes.

mod blocking;
mod client;
mod copier;
mod kv_memory;
mod lock;
mod mapping;
mod server;
mod stream;
mod two_step;
pub mod wire;

pub use blocking::Attachment;
pub use client::EngineClient;
pub use copier::{Copier, Finished, LoadBlock};
pub use kv_memory::{KvLayer, KvMemory};
pub use server::{EngineServer, ServerConfig, StartError};
pub use two_step::{ShardsHit, ShardsLoaded, TwoStep};
