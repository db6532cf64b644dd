//! Least recently used.

use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// Gives up the least recently used block first. A new block counts as used just before its parent
/// was, so that the tail of a prompt goes before its head.
#[derive(Clone, Debug, Default)]
pub struct Lru {
    links: Links,
    list: List,
}

impl EvictionPolicy for Lru {
    fn on_insert(&mut self, id: EntryId, _fingerprint: u64, parent: Option<EntryId>) {
        match parent {
            Some(parent) => self.list.push_behind(&mut self.links, id, parent),
            None => self.list.push(&mut self.links, id),
        }
    }

    fn on_touch(&mut self, id: EntryId) {
        if self.list.newest() != Some(id) {
            self.list.unlink(&mut self.links, id);
            self.list.push(&mut self.links, id);
        }
    }

    fn on_remove(&mut self, id: EntryId) {
        self.list.unlink(&mut self.links, id);
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        match after {
            None => self.list.oldest(),
            Some(id) => self.links.newer(id),
        }
    }
}
