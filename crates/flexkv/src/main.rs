//! The `flexkv` command.
fn main() {}
