//! The transport over real sockets on the loopback interface.

mod conformance;
mod damage;
mod faults;
mod handshake;
mod leaks;
mod owner;
mod processes;
mod support;
mod tls;
mod turns;
