//! Block transport over TCP: a reader pulls blocks out of an owner's tier, verified on arrival.
//!
//! The data path runs on blocking threads: two connections to a peer, which share a batch piece by
//! piece, and which a small fetch uses from its caller's own thread; at the owner one thread for each
//! connection. Payloads go from slot to socket and from socket to slot without a copy in between,
//! unless they pass inside TLS. The protocol byte by byte: `docs/protocol.md`.
//!
//! This crate knows nothing of the index, of other transports, or of who is a member.

mod batch;
mod connection;
mod deadline;
mod foreign;
mod line;
mod peer;
mod server;
mod session;
mod set_up;
mod stay;
mod tls;
mod transport;
pub mod wire;

pub use server::{Served, ServerConfig, TcpServer};
pub use tls::{Tls, TlsError, TlsFiles};
pub use transport::{TcpTransport, TransportConfig};
