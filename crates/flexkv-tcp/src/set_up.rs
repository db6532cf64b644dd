//! What a new connection is told of the way between its ends.
//!
//! Knows nothing of what is sent over it.

use std::io;
use std::net::TcpStream;

use rustix::net::sockopt;

/// The congestion control of connections that never leave the host. Every kernel has it and lets every
/// process choose it.
const ON_HOST: &str = "reno";

/// Lets small messages go at once. Between two ends of one host there is no network that would have to be
/// measured and spared: what the host does for networks, such as BBR with its timers, costs processor time
/// there and slows a block down.
pub(crate) fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if is_on_host(stream) {
        // On a host that refuses it blocks come more slowly, and nothing else is different.
        let _ = sockopt::set_tcp_congestion(stream, ON_HOST);
    }
    Ok(())
}

/// Whether both ends have the same address.
pub(crate) fn is_on_host(stream: &TcpStream) -> bool {
    let ends = (stream.local_addr(), stream.peer_addr());
    matches!(ends, (Ok(here), Ok(there)) if here.ip() == there.ip())
}

#[cfg(test)]
mod tests;
