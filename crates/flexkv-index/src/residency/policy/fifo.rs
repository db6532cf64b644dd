//! First in, first out.

use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// Gives up first what came first, whatever it was used for since. Of blocks that came as one chain
/// the last one goes first.
#[derive(Clone, Debug, Default)]
pub struct Fifo {
    links: Links,
    list: List,
    /// The block that came last.
    last: Option<EntryId>,
}

impl EvictionPolicy for Fifo {
    fn on_insert(&mut self, id: EntryId, _fingerprint: u64, parent: Option<EntryId>) {
        match parent.filter(|parent| self.last == Some(*parent)) {
            Some(parent) => self.list.push_behind(&mut self.links, id, parent),
            None => self.list.push(&mut self.links, id),
        }
        self.last = Some(id);
    }

    fn on_touch(&mut self, _id: EntryId) {}

    fn on_remove(&mut self, id: EntryId) {
        self.last = self.last.filter(|last| *last != id);
        self.list.unlink(&mut self.links, id);
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        match after {
            None => self.list.oldest(),
            Some(id) => self.links.newer(id),
        }
    }
}
