//! News of blocks that a cache no longer holds, for whoever announces to others what there is.
//!
//! Bounded and coalesced: news that nobody takes is kept up to a limit and counted beyond it, and a
//! block that comes back before its removal was taken is no news. Knows nothing of why blocks go.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flexkv_block::BlockKey;
use tokio::sync::Notify;

/// Keys that one watcher may leave untaken: 1 MiB.
const MOST_UNTAKEN: usize = 1 << 16;

/// Where a cache tells what it no longer holds. Clones are the same feed.
#[derive(Clone, Default)]
pub struct RemovalFeed {
    watchers: Arc<Mutex<Vec<Weak<Inbox>>>>,
}

/// What one watcher has not taken yet.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    arrived: Notify,
}

#[derive(Default)]
struct News {
    keys: BTreeSet<BlockKey>,
    lost: u64,
}

/// News for one watcher; dropping it ends the watch.
pub struct Removals(Arc<Inbox>);

/// What was removed since news were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Blocks that are no longer held.
    pub keys: Vec<BlockKey>,
    /// How many more there were, which of them cannot be said.
    pub lost: u64,
}

impl RemovalFeed {
    /// News from now on.
    pub fn watch(&self) -> Removals {
        let inbox = Arc::new(Inbox::default());
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(&inbox));
        Removals(inbox)
    }

    /// These blocks are no longer held.
    pub fn removed(&self, keys: impl IntoIterator<Item = BlockKey> + Clone) {
        self.tell(|news| {
            for key in keys.clone() {
                if news.keys.len() < MOST_UNTAKEN {
                    news.keys.insert(key);
                } else if !news.keys.contains(&key) {
                    news.lost += 1;
                }
            }
        });
    }

    /// These blocks are held again, or for the first time.
    pub fn stored(&self, keys: impl IntoIterator<Item = BlockKey> + Clone) {
        self.each(|inbox| {
            let mut news = lock(&inbox.news);
            if !news.keys.is_empty() {
                for key in keys.clone() {
                    news.keys.remove(&key);
                }
            }
        });
    }

    /// So many removals were lost on their way here.
    pub fn lost(&self, count: u64) {
        if count > 0 {
            self.tell(|news| news.lost += count);
        }
    }

    fn tell(&self, change: impl Fn(&mut News)) {
        self.each(|inbox| {
            change(&mut lock(&inbox.news));
            inbox.arrived.notify_one();
        });
    }

    fn each(&self, act: impl Fn(&Inbox)) {
        let watchers = lock(&self.watchers);
        watchers
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|inbox| act(&inbox));
    }
}

impl Removals {
    /// What is new, perhaps nothing.
    pub fn take(&self) -> Removed {
        let News { keys, lost } = std::mem::take(&mut *lock(&self.0.news));
        let keys = keys.into_iter().collect();
        Removed { keys, lost }
    }

    /// Waits until something is new. For one caller at a time.
    pub async fn next(&self) -> Removed {
        loop {
            let removed = self.take();
            if removed != Removed::default() {
                return removed;
            }
            self.0.arrived.notified().await;
        }
    }
}

impl std::fmt::Debug for Removals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Removals({} untaken)", lock(&self.0.news).keys.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
