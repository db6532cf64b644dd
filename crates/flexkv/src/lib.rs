//! The flexkv command: demo, node, replay and bench.
