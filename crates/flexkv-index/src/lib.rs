//! The global index: which node holds which blocks, as far as this node knows.
//!
//! - [`mod@snapshot`]: the index in memory, read lock-free while it is written, and the prefix match.
//! - [`record`], [`log`]: what nodes publish of themselves, and its bytes.
//! - [`publisher`]: the owner's state machine, [`follower`]: the reader's.
//! - [`pace`]: how fast a node may use the store, so that all together keep within a budget.
//! - [`residency`]: what this node holds itself, and what to evict next.
//! - [`mod@reset`]: requests to drop everything.
//!
//! No module here does I/O, reads a clock or knows what the metadata store is: time and messages
//! are arguments, work to do is a value. Correctness never rests on the index; it is a hint that
//! the data path verifies.

pub mod follower;
pub mod log;
pub mod pace;
pub mod publisher;
pub mod record;
pub mod reset;
pub mod residency;
pub mod snapshot;

pub use follower::{Follower, FollowerConfig, FollowerEvent, Refusal, Trouble};
pub use pace::Share;
pub use publisher::{PublishAction, PublishOutcome, Publisher, PublisherConfig, PublisherStats};
pub use record::{NameError, NodeId, NodeInfo, NodeName, NodeRecord, RecordError};
pub use reset::{ResetRequest, is_reset_lease};
pub use residency::{
    AnyPolicy, EvictionPolicy, LiveRun, LiveSet, Lru, PolicyKind, Removed, Residency, Walk,
};
pub use snapshot::{
    MAX_OWNERS, MatchOptions, OwnerId, OwnerRun, OwnerSet, PrefixMatch, Snapshot, SnapshotStats,
    SnapshotWriter, snapshot,
};
