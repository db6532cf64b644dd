//! Builds, checks and integration runs of the workspace.
fn main() {}
