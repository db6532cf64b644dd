//! Segmented least recently used.

use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// Gives up the least recently used of the blocks that were not used again; those that were make up
/// at most four fifths, the least recently used of which goes back among the others.
#[derive(Clone, Debug, Default)]
pub struct Slru {
    links: Links,
    probation: List,
    protected: List,
    is_protected: Vec<bool>,
}

impl Slru {
    /// Sends protected blocks back as long as there are too many.
    fn balance(&mut self) {
        let total = self.probation.len() + self.protected.len();
        while self.protected.len() > total * 4 / 5 {
            let Some(id) = self.protected.oldest() else {
                return;
            };
            self.protected.unlink(&mut self.links, id);
            self.probation.push(&mut self.links, id);
            self.is_protected[id.index()] = false;
        }
    }
}

impl EvictionPolicy for Slru {
    fn on_insert(&mut self, id: EntryId, _fingerprint: u64, parent: Option<EntryId>) {
        if self.is_protected.len() <= id.index() {
            self.is_protected.resize(id.index() + 1, false);
        }
        self.is_protected[id.index()] = false;
        match parent.filter(|parent| !self.is_protected[parent.index()]) {
            Some(parent) => self.probation.push_behind(&mut self.links, id, parent),
            None => self.probation.push(&mut self.links, id),
        }
    }

    fn on_touch(&mut self, id: EntryId) {
        let protected = &mut self.is_protected[id.index()];
        let list = if std::mem::replace(protected, true) {
            &mut self.protected
        } else {
            &mut self.probation
        };
        list.unlink(&mut self.links, id);
        self.protected.push(&mut self.links, id);
        self.balance();
    }

    fn on_remove(&mut self, id: EntryId) {
        let list = if self.is_protected[id.index()] {
            &mut self.protected
        } else {
            &mut self.probation
        };
        list.unlink(&mut self.links, id);
        self.balance();
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        let Some(id) = after else {
            return self.probation.oldest().or_else(|| self.protected.oldest());
        };
        let newer = self.links.newer(id);
        if self.is_protected[id.index()] {
            newer
        } else {
            newer.or_else(|| self.protected.oldest())
        }
    }
}
