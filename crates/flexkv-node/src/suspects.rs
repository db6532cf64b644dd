//! Blocks of this node that turned out wrong, or that a peer says are.
//!
//! A report is never believed: this node looks at its own copy, and drops it only if that is bad. A
//! copy that is good was damaged on its way.

use std::sync::Arc;

use flexkv_ports::{ReadSlot, Suspect, SuspectReceiver};

use crate::{Node, Shared};

impl Node {
    /// Looks at every block that `reports` name, for as long as the node runs.
    pub fn heed(&self, reports: SuspectReceiver) {
        let task = tokio::spawn(heed(self.shared.clone(), reports));
        self.add_task(task.abort_handle());
    }
}

async fn heed(shared: Arc<Shared>, mut reports: SuspectReceiver) {
    while let Some(suspect) = reports.next().await {
        shared.look_at(suspect);
        // Hashing a block takes up to a millisecond: let other tasks run in between.
        tokio::task::yield_now().await;
    }
}

impl Shared {
    fn look_at(&self, suspect: Suspect) {
        let Suspect { location, key } = suspect;
        let bad = self.tier.pin(location, key).ok();
        let bad = bad.filter(|slot| !slot.verify());
        tracing::info!(%key, bad = bad.is_some(), "a peer reports that a block arrived damaged");
        match bad {
            Some(slot) => {
                self.counters.reports_confirmed.increment(1);
                self.drop_corrupt(slot);
            }
            None => self.counters.reports_unfounded.increment(1),
        }
    }

    /// Drops a block of this node whose bytes have changed.
    pub(crate) fn drop_corrupt(&self, slot: ReadSlot) {
        self.counters.local_corrupt.increment(1);
        tracing::warn!(key = %slot.key(), "a block here changed its bytes; dropped");
        self.core.drop_corrupt(self.now(), slot, &*self.tier);
    }
}
