//! The transport over real sockets on the loopback interface.

mod conformance;
mod faults;
mod handshake;
mod leaks;
mod owner;
mod support;
