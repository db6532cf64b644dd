//! The global index: snapshot, prefix match, delta log, publisher and follower, residency.
