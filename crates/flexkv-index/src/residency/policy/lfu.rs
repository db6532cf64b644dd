//! Least frequently used.

use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// Uses beyond so many are not told apart.
const USES_MAX: usize = 255;

/// Gives up the least often used block first, of equally often used ones the least recently used.
/// Being stored counts as the first use.
#[derive(Clone, Debug)]
pub struct Lfu {
    links: Links,
    /// By number of uses.
    lists: Vec<List>,
    uses: Vec<u8>,
}

impl Default for Lfu {
    fn default() -> Self {
        Self {
            links: Links::default(),
            lists: vec![List::default(); USES_MAX + 1],
            uses: Vec::new(),
        }
    }
}

impl Lfu {
    fn list(&mut self, id: EntryId) -> (&mut List, &mut Links) {
        let uses = usize::from(self.uses[id.index()]);
        (&mut self.lists[uses], &mut self.links)
    }

    /// The oldest block of those used `least` times or more.
    fn oldest(&self, least: usize) -> Option<EntryId> {
        self.lists[least..].iter().find_map(List::oldest)
    }
}

impl EvictionPolicy for Lfu {
    fn on_insert(&mut self, id: EntryId, _fingerprint: u64, parent: Option<EntryId>) {
        if self.uses.len() <= id.index() {
            self.uses.resize(id.index() + 1, 0);
        }
        self.uses[id.index()] = 1;
        let parent = parent.filter(|parent| self.uses[parent.index()] == 1);
        let (list, links) = self.list(id);
        match parent {
            Some(parent) => list.push_behind(links, id, parent),
            None => list.push(links, id),
        }
    }

    fn on_touch(&mut self, id: EntryId) {
        let (list, links) = self.list(id);
        list.unlink(links, id);
        let uses = &mut self.uses[id.index()];
        *uses = uses.saturating_add(1);
        let (list, links) = self.list(id);
        list.push(links, id);
    }

    fn on_remove(&mut self, id: EntryId) {
        let (list, links) = self.list(id);
        list.unlink(links, id);
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        let Some(id) = after else {
            return self.oldest(0);
        };
        let newer = self.links.newer(id);
        newer.or_else(|| self.oldest(usize::from(self.uses[id.index()]) + 1))
    }
}
