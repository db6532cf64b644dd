//! The targets, one a module. Each knows one decoder and nothing of how it is fuzzed.

pub(crate) mod block_frame;
pub(crate) mod canary;
