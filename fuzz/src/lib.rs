//! Fuzz targets: the decoders of everything that comes from outside, and what must hold of them.
//!
//! A target is a function of bytes that panics if something does not hold. Here is the one list of
//! them. libFuzzer runs them in `src/fuzz.rs` (`cargo xtask fuzz`); `cargo test` replays seeds,
//! corpus and regressions through the same functions. Knows nothing of libFuzzer.

mod targets;

/// Something to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its directories below `corpus` and `regressions`.
    pub name: &'static str,
    /// Does with the bytes what a receiver would; panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to start from: each kind of message, well-formed.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::block_frame::TARGET,
    targets::canary::TARGET,
    targets::checkpoint::TARGET,
    targets::config::TARGET,
    targets::delta_log::TARGET,
    targets::follower::TARGET,
    targets::greeting::TARGET,
    targets::local_protocol::TARGET,
    targets::node_record::TARGET,
    targets::redis_reply::TARGET,
    targets::reset_request::TARGET,
    targets::ssd_files::TARGET,
    targets::tcp_wire::TARGET,
    targets::trace::TARGET,
];

/// The target called `name`.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests;
