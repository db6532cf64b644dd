//! [`MetadataStore`](flexkv_ports::MetadataStore) on Redis or Valkey, and a private server to try it on.
//!
//! Leases are strings that expire, logs are streams that expire, members are a sorted set of lease
//! keys with the number of their last change.
//! Every command has a time-out. A lost connection is opened again for ever; until it is, calls
//! fail at once instead of queueing. `docs/protocol.md` lists each key and command.
//!
//! This crate knows names and bytes. What a record or a log entry says is none of its business,
//! and it never holds KV bytes.

pub mod answers;
mod cluster;
mod config;
mod error;
mod keys;
mod link;
pub mod local;
mod members;
mod reads;
mod reply;
mod scripts;
mod servers;
mod store;
mod tls;

pub use config::{ConfigError, RedisConfig};
pub use store::RedisStore;
pub use tls::{Identity, TlsFiles};
