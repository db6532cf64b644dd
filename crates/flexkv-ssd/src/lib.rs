//! The SSD tier: blocks in preallocated files of several directories, moved past the page cache,
//! each in a frame with its key, generation and checksum, and found again after a crash.
//!
//! It knows nothing of who wants a block, of the cluster or of which block should go: slots are
//! asked for, given up and told of. What reaches it is pinned memory, what leaves it is memory that
//! was verified after it was read.

mod config;
mod device;
mod error;
pub mod format;
pub mod io;
mod journal;
mod recovery;
mod segments;
mod slots;
mod stats;
mod tier;
mod uses;

pub use config::{EngineChoice, SsdConfig, SsdDir};
pub use error::SsdError;
pub use stats::SsdStats;
pub use tier::SsdTier;
