//! The end of work that several may wait for. Knows nothing of the work.

use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;

/// Where the outcome of some work is found once there is one. Those who wait are woken in the order of
/// waiting, which a watch channel does not do: simulated runs would differ.
pub(crate) struct Landing<T> {
    landed: OnceLock<T>,
    /// Has no permits, and is closed at the end.
    under_way: Semaphore,
}

impl<T> Landing<T> {
    /// The place, and what the work holds until it ends.
    pub(crate) fn new() -> (Arc<Self>, UnderWay<T>) {
        let landing = Arc::new(Self {
            landed: OnceLock::new(),
            under_way: Semaphore::new(0),
        });
        (landing.clone(), UnderWay(landing))
    }

    /// What came of it; `None` before the end, and if it was given up.
    pub(crate) fn landed(&self) -> Option<&T> {
        self.landed.get()
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) {
        drop(self.under_way.acquire().await);
    }
}

/// Work under way, which ends when this is dropped.
pub(crate) struct UnderWay<T>(Arc<Landing<T>>);

impl<T> UnderWay<T> {
    /// Ends it well.
    pub(crate) fn land(self, outcome: T) {
        self.0.landed.get_or_init(|| outcome);
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.under_way.close();
    }
}
