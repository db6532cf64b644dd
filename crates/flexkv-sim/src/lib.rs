//! Seeded simulation of a cluster: simulated ports, faults and checkers.
