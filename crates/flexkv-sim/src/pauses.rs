//! Nodes that are stopped for a while, as a process is by SIGSTOP: they neither ask nor answer, and
//! take up where they were. Knows nothing of what they were at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Who is paused. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Pauses {
    state: Arc<Mutex<State>>,
    /// Wakes in the order of waiting, which a watch channel does not: runs would differ.
    resumed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    paused: BTreeSet<String>,
    /// How often each node was.
    times: BTreeMap<String, u64>,
}

impl Pauses {
    pub(crate) fn pause(&self, name: &str) {
        let mut state = self.state();
        *state.times.entry(name.to_owned()).or_default() += 1;
        state.paused.insert(name.to_owned());
    }

    pub(crate) fn resume(&self, name: &str) {
        self.state().paused.remove(name);
        self.resumed.notify_waiters();
    }

    pub(crate) fn resume_all(&self) {
        self.state().paused.clear();
        self.resumed.notify_waiters();
    }

    pub(crate) fn is_paused(&self, name: &str) -> bool {
        self.state().paused.contains(name)
    }

    /// How often `name` was paused so far.
    pub(crate) fn times(&self, name: &str) -> u64 {
        self.state().times.get(name).copied().unwrap_or_default()
    }

    /// Returns as soon as `name` runs.
    pub(crate) async fn until_running(&self, name: &str) {
        while self.is_paused(name) {
            // Nothing else runs between the look and the wait.
            self.resumed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
