//! Host-memory tier: one shared-memory arena of fixed slots with generations.
