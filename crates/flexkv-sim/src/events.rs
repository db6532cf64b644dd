//! The event log: what happened when, in virtual time. Two runs of one seed must give equal logs.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Collects lines; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    started: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            lines: Arc::default(),
        }
    }

    /// Appends a line with the virtual time.
    pub(crate) fn note(&self, what: impl Display) {
        let at = self.started.elapsed().as_secs_f64();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(format!("{at:10.3}  {what}"));
    }

    /// All lines so far.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
