//! Least recently used, except that a block which was used again counts as half as old.

use super::ghosts::Ghosts;
use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// A block that was used again counts as so many times younger than one that was not.
const YOUNGER: u64 = 2;

/// Gives up the oldest block first. Its age is the number of uses of any blocks since its last one; half of
/// that if it was used again since it came, or came back soon after it went. Most prompts never return,
/// and those that did are likelier to do so again; but nothing is kept for ever because it was once in
/// use. A new block counts as used just before its parent was, so that the tail of a prompt goes
/// before its head.
#[derive(Clone, Debug, Default)]
pub struct HalfAge {
    links: Links,
    once: List,
    again: List,
    entries: Vec<Entry>,
    /// Uses of all blocks so far.
    now: u64,
    ghosts: Ghosts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    fingerprint: u64,
    /// When it was used last.
    used: u64,
    again: bool,
}

impl HalfAge {
    fn list(&mut self, id: EntryId) -> (&mut List, &mut Links) {
        if self.entries[id.index()].again {
            (&mut self.again, &mut self.links)
        } else {
            (&mut self.once, &mut self.links)
        }
    }

    /// The list whose oldest block is to go first, and the other one.
    fn in_order(&self) -> [&List; 2] {
        let age = |list: &List| {
            let oldest = list.oldest()?;
            Some(self.now - self.entries[oldest.index()].used)
        };
        match (age(&self.once), age(&self.again)) {
            (Some(once), Some(again)) if again <= YOUNGER * once => [&self.once, &self.again],
            (Some(_), None) => [&self.once, &self.again],
            _ => [&self.again, &self.once],
        }
    }
}

impl EvictionPolicy for HalfAge {
    fn on_insert(&mut self, id: EntryId, fingerprint: u64, parent: Option<EntryId>) {
        if self.entries.len() <= id.index() {
            self.entries.resize(id.index() + 1, Entry::default());
        }
        self.now += 1;
        let again = self.ghosts.has(fingerprint);
        let parent = parent.filter(|parent| self.entries[parent.index()].again == again);
        self.entries[id.index()] = Entry {
            fingerprint,
            used: parent.map_or(self.now, |parent| self.entries[parent.index()].used),
            again,
        };
        let (list, links) = self.list(id);
        match parent {
            Some(parent) => list.push_behind(links, id, parent),
            None => list.push(links, id),
        }
    }

    fn on_touch(&mut self, id: EntryId) {
        let (list, links) = self.list(id);
        list.unlink(links, id);
        self.now += 1;
        let entry = &mut self.entries[id.index()];
        entry.used = self.now;
        entry.again = true;
        self.again.push(&mut self.links, id);
    }

    fn on_remove(&mut self, id: EntryId) {
        let (list, links) = self.list(id);
        list.unlink(links, id);
        let most = (self.once.len() + self.again.len()).max(1);
        self.ghosts.add(self.entries[id.index()].fingerprint, most);
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        let [first, second] = self.in_order();
        let Some(id) = after else {
            return first.oldest();
        };
        // Past the end of the one comes the other.
        self.links.newer(id).or_else(|| {
            let again = self.entries[id.index()].again;
            let in_first = again == std::ptr::eq(first, &self.again);
            second.oldest().filter(|_| in_first)
        })
    }
}
