//! The targets, one a module. Each knows one decoder and nothing of how it is fuzzed.

pub(crate) mod block_frame;
pub(crate) mod canary;
pub(crate) mod checkpoint;
pub(crate) mod config;
pub(crate) mod delta_log;
pub(crate) mod follower;
pub(crate) mod greeting;
pub(crate) mod local_protocol;
pub(crate) mod node_record;
pub(crate) mod redis_reply;
pub(crate) mod reset_request;
pub(crate) mod ssd_files;
pub(crate) mod tcp_wire;
pub(crate) mod trace;
