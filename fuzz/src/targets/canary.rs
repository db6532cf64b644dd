//! A planted bug: four bytes that make it panic. A fuzzer that does not find them is blind.
//!
//! Tests no code of ours.

use crate::Target;

/// What the panic says; `cargo xtask fuzz` looks for it.
pub(crate) const SONG: &str = "the canary sings";
/// The bytes that make it.
pub(crate) const BUG: &[u8; 4] = b"FKV!";

pub(crate) const TARGET: Target = Target {
    name: "canary",
    run,
    seeds: || vec![b"no bug".to_vec()],
};

fn run(data: &[u8]) {
    let matching = BUG.iter().zip(data).take_while(|(bug, byte)| bug == byte);
    assert!(matching.count() < BUG.len(), "{SONG}");
}
