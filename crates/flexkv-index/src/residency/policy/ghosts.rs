//! Fingerprints of blocks that are gone, the latest ones. Knows nothing of what a return means.

use std::collections::{HashMap, VecDeque};

/// Blocks that went, and how often each is in there.
#[derive(Clone, Debug, Default)]
pub(super) struct Ghosts {
    queue: VecDeque<u64>,
    counts: HashMap<u64, u32>,
}

impl Ghosts {
    pub(super) fn has(&self, fingerprint: u64) -> bool {
        self.counts.contains_key(&fingerprint)
    }

    /// Adds a block that went, and forgets the earliest ones beyond `most`.
    pub(super) fn add(&mut self, fingerprint: u64, most: usize) {
        self.queue.push_back(fingerprint);
        *self.counts.entry(fingerprint).or_default() += 1;
        while self.queue.len() > most {
            let Some(oldest) = self.queue.pop_front() else {
                return;
            };
            if let Some(count) = self.counts.get_mut(&oldest) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&oldest);
                }
            }
        }
    }
}
