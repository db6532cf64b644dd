//! Lists of entries, from the newest to the oldest, with the links of all entries in one array. An
//! entry is in one list of its policy at most. Knows nothing of what an order means.

use super::EntryId;

/// No entry.
const NONE: u32 = u32::MAX;

/// Who is next to whom, in all lists of a policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Links(Vec<Link>);

#[derive(Clone, Copy, Debug)]
struct Link {
    newer: u32,
    older: u32,
}

/// One list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            newest: NONE,
            oldest: NONE,
            len: 0,
        }
    }
}

impl Links {
    /// The entry after `id` towards the new end.
    pub(super) fn newer(&self, id: EntryId) -> Option<EntryId> {
        entry(self.0[id.index()].newer)
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn newest(&self) -> Option<EntryId> {
        entry(self.newest)
    }

    pub(super) fn oldest(&self) -> Option<EntryId> {
        entry(self.oldest)
    }

    /// Puts `id` at the new end.
    pub(super) fn push(&mut self, links: &mut Links, id: EntryId) {
        self.link(links, id, NONE);
    }

    /// Puts `id` directly behind `newer`, which is in this list.
    pub(super) fn push_behind(&mut self, links: &mut Links, id: EntryId, newer: EntryId) {
        self.link(links, id, newer.0);
    }

    fn link(&mut self, links: &mut Links, id: EntryId, newer: u32) {
        let Links(links) = links;
        if links.len() <= id.index() {
            let none = Link {
                newer: NONE,
                older: NONE,
            };
            links.resize(id.index() + 1, none);
        }
        let older = if newer == NONE {
            std::mem::replace(&mut self.newest, id.0)
        } else {
            std::mem::replace(&mut links[newer as usize].older, id.0)
        };
        if older == NONE {
            self.oldest = id.0;
        } else {
            links[older as usize].newer = id.0;
        }
        links[id.index()] = Link { newer, older };
        self.len += 1;
    }

    /// Takes `id`, which is in this list, out.
    pub(super) fn unlink(&mut self, links: &mut Links, id: EntryId) {
        let Links(links) = links;
        let Link { newer, older } = links[id.index()];
        if newer == NONE {
            self.newest = older;
        } else {
            links[newer as usize].older = older;
        }
        if older == NONE {
            self.oldest = newer;
        } else {
            links[older as usize].newer = newer;
        }
        self.len -= 1;
    }
}

fn entry(id: u32) -> Option<EntryId> {
    (id != NONE).then_some(EntryId(id))
}
