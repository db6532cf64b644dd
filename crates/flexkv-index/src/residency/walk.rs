//! The residency in chain order: parents before children, runs as long as they can be. Knows
//! nothing of what the runs are written to.

use super::*;

/// No entry.
const NONE: u32 = u32::MAX;
/// Longest run handed out at once.
const MAX_RUN: usize = 4096;

/// For each entry its first child and its next sibling.
struct Tree {
    child: Vec<u32>,
    sibling: Vec<u32>,
    /// Entries whose parent is not here.
    roots: Vec<u32>,
}

impl<P: EvictionPolicy> LiveSet for Residency<P> {
    fn for_each_run(&self, each: &mut dyn FnMut(LiveRun<'_>)) {
        let Tree {
            child,
            sibling,
            roots,
        } = self.tree();
        let mut starts = roots;
        let (mut fingerprints, mut locations) = (Vec::new(), Vec::new());
        while let Some(start) = starts.pop() {
            let mut parent = self.entries[start as usize].parent;
            let mut at = start;
            while at != NONE {
                let entry = &self.entries[at as usize];
                if let Some(best) = entry.best() {
                    fingerprints.push(entry.key.fingerprint());
                    locations.push(best);
                }
                let next = child[at as usize];
                let mut fork = if next == NONE {
                    NONE
                } else {
                    sibling[next as usize]
                };
                while fork != NONE {
                    starts.push(fork);
                    fork = sibling[fork as usize];
                }
                if next == NONE || fingerprints.len() == MAX_RUN {
                    each(LiveRun {
                        parent: parent.map(BlockKey::fingerprint),
                        fingerprints: &fingerprints,
                        locations: &locations,
                    });
                    fingerprints.clear();
                    locations.clear();
                    parent = Some(entry.key);
                }
                at = next;
            }
        }
    }
}

impl<P: EvictionPolicy> Residency<P> {
    fn tree(&self) -> Tree {
        let mut tree = Tree {
            child: vec![NONE; self.entries.len()],
            sibling: vec![NONE; self.entries.len()],
            roots: Vec::new(),
        };
        for id in self.map.values() {
            let at = id.index() as u32;
            let parent = self.entries[id.index()].parent;
            match parent.and_then(|key| self.find(key)).filter(|up| up != id) {
                Some(parent) => {
                    let first = std::mem::replace(&mut tree.child[parent.index()], at);
                    tree.sibling[id.index()] = first;
                }
                None => tree.roots.push(at),
            }
        }
        tree
    }
}
