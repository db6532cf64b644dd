//! The local protocol over real sockets, shared memory and processes.

mod cache;
mod copier;
mod endpoint;
mod memfd;
mod processes;
mod sessions;
mod support;
mod two_step;
