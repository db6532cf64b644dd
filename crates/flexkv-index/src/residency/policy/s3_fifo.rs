//! S3-FIFO: three queues, of which one is of blocks that are gone. After Yang and others, "FIFO
//! queues are all you need for cache eviction", SOSP 2023.

use super::ghosts::Ghosts;
use super::list::{Links, List};
use super::{EntryId, EvictionPolicy};

/// Uses beyond so many are not told apart.
const USES_MAX: u8 = 3;

/// New blocks pass through a small queue of a tenth; those used twice or more there, and those that
/// come back soon after they went from there, enter the main queue, in which a use buys another
/// round. Of blocks that came as one chain the last one goes first.
#[derive(Clone, Debug, Default)]
pub struct S3Fifo {
    links: Links,
    small: List,
    main: List,
    entries: Vec<Entry>,
    /// The block that came last.
    last: Option<EntryId>,
    /// Blocks that went from the small queue.
    ghosts: Ghosts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    fingerprint: u64,
    uses: u8,
    in_main: bool,
}

impl S3Fifo {
    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }

    fn list(&mut self, id: EntryId) -> (&mut List, &mut Links) {
        if self.entries[id.index()].in_main {
            (&mut self.main, &mut self.links)
        } else {
            (&mut self.small, &mut self.links)
        }
    }

    fn pass_on(&mut self, id: EntryId) {
        let (list, links) = self.list(id);
        list.unlink(links, id);
        self.entries[id.index()].in_main = true;
        self.main.push(&mut self.links, id);
    }

    /// Passes blocks on until the one to give up is at the end of its queue.
    fn settle(&mut self) -> Option<EntryId> {
        loop {
            let small_is_due = 10 * self.small.len() >= self.len();
            let small = self.small.oldest().filter(|_| small_is_due);
            let id = small.or_else(|| self.main.oldest())?;
            let entry = &mut self.entries[id.index()];
            if entry.in_main && entry.uses > 0 {
                entry.uses -= 1;
                self.pass_on(id);
            } else if !entry.in_main && entry.uses > 1 {
                entry.uses = 0;
                self.pass_on(id);
            } else {
                return Some(id);
            }
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn on_insert(&mut self, id: EntryId, fingerprint: u64, parent: Option<EntryId>) {
        if self.entries.len() <= id.index() {
            self.entries.resize(id.index() + 1, Entry::default());
        }
        let in_main = self.ghosts.has(fingerprint);
        self.entries[id.index()] = Entry {
            fingerprint,
            uses: 0,
            in_main,
        };
        let parent = parent.filter(|parent| {
            self.last == Some(*parent) && self.entries[parent.index()].in_main == in_main
        });
        let (list, links) = self.list(id);
        match parent {
            Some(parent) => list.push_behind(links, id, parent),
            None => list.push(links, id),
        }
        self.last = Some(id);
    }

    fn on_touch(&mut self, id: EntryId) {
        let uses = &mut self.entries[id.index()].uses;
        *uses = (*uses + 1).min(USES_MAX);
    }

    fn on_remove(&mut self, id: EntryId) {
        self.last = self.last.filter(|last| *last != id);
        let (list, links) = self.list(id);
        list.unlink(links, id);
        let entry = self.entries[id.index()];
        if !entry.in_main {
            self.ghosts.add(entry.fingerprint, self.len().max(1));
        }
    }

    fn next_victim(&mut self, after: Option<EntryId>) -> Option<EntryId> {
        let Some(id) = after else {
            return self.settle();
        };
        let newer = self.links.newer(id);
        // Small gives up first when it is due, main otherwise; past the end of one comes the other.
        newer.or_else(|| {
            let (first, second) = if 10 * self.small.len() >= self.len() {
                (&self.small, &self.main)
            } else {
                (&self.main, &self.small)
            };
            let in_first = self.entries[id.index()].in_main == std::ptr::eq(first, &self.main);
            second.oldest().filter(|_| in_first)
        })
    }
}
