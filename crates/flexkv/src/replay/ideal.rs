//! What the best cache of the same size would have served: one list of blocks in order of use, as
//! long as memory and SSDs of all nodes together, which every node reads at once. So the first level
//! is its beginning, and what leaves that goes on to the second.
//!
//! Knows the requests only, and nothing of how nodes do it.

use std::collections::{BTreeMap, HashMap};

use flexkv_block::BlockKey;

/// The ideal caches of a cluster: one of all nodes, or one for each if they are alone.
pub(super) struct Ideal {
    lists: Vec<InOrder>,
}

impl Ideal {
    /// The caches of `nodes` nodes that keep `blocks` blocks each.
    pub(super) fn new(nodes: usize, blocks: usize, alone: bool) -> Self {
        let (count, length) = if alone {
            (nodes, blocks)
        } else {
            (1, nodes * blocks)
        };
        Self {
            lists: (0..count).map(|_| InOrder::new(length)).collect(),
        }
    }

    /// How many leading blocks of a prompt are served to node `turn`.
    pub(super) fn serve(&mut self, turn: usize, keys: &[BlockKey]) -> usize {
        let at = turn % self.lists.len();
        self.lists[at].serve(keys)
    }
}

/// Blocks in order of use, those that were used longest ago being the first to go.
struct InOrder {
    most: usize,
    uses: u64,
    last_use: HashMap<BlockKey, u64>,
    by_use: BTreeMap<u64, BlockKey>,
}

impl InOrder {
    fn new(most: usize) -> Self {
        Self {
            most,
            uses: 0,
            last_use: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// A block serves only together with all before it. Of a prompt the end goes first, as it is of
    /// no use without the beginning.
    fn serve(&mut self, keys: &[BlockKey]) -> usize {
        let here = keys
            .iter()
            .take_while(|key| self.last_use.contains_key(key));
        let here = here.count();
        for key in keys.iter().rev() {
            self.uses += 1;
            if let Some(before) = self.last_use.insert(*key, self.uses) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.uses, *key);
        }
        while self.last_use.len() > self.most {
            if let Some((_, key)) = self.by_use.pop_first() {
                self.last_use.remove(&key);
            }
        }
        here
    }
}

#[cfg(test)]
mod tests;
