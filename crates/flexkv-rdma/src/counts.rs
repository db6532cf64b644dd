//! What a transport asked of its device, counted, so that it can be compared with the least that
//! would do. Knows nothing of how the device does it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the transport began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaCounts {
    /// Blocks that were asked of a device.
    pub blocks: u64,
    /// Work requests posted for them.
    pub work_requests: u64,
    /// Times that work requests were handed to the device, each with one signalled completion.
    pub posts: u64,
    /// Completions that were heard of.
    pub completions: u64,
    /// Regions registered: those of the arena, and one for each connection.
    pub registrations: u64,
    /// Connections made.
    pub connections: u64,
}

/// The counters behind [`RdmaCounts`].
#[derive(Debug, Default)]
pub struct RdmaCounters {
    pub(crate) blocks: AtomicU64,
    pub(crate) work_requests: AtomicU64,
    pub(crate) posts: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) registrations: AtomicU64,
    pub(crate) connections: AtomicU64,
}

impl RdmaCounters {
    /// What they say now.
    pub fn read(&self) -> RdmaCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RdmaCounts {
            blocks: read(&self.blocks),
            work_requests: read(&self.work_requests),
            posts: read(&self.posts),
            completions: read(&self.completions),
            registrations: read(&self.registrations),
            connections: read(&self.connections),
        }
    }
}

/// Adds to one of them.
pub(crate) fn add(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}
