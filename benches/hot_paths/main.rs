//! The hot paths, each beside a naive way to do the same, in one run.
//!
//! `cargo xtask bench` measures; `cargo test --bench hot_paths` runs each bench once.

mod delta_apply;
mod frame_codec;
mod hashing;
mod match_prefix;
mod tcp_fetch;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    hashing::bench(&mut criterion);
    frame_codec::bench(&mut criterion);
    match_prefix::bench(&mut criterion);
    delta_apply::bench(&mut criterion);
    tcp_fetch::bench(&mut criterion);
    criterion.final_summary();
}
