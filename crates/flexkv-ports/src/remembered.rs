//! A bounded number of things that are kept by name, such as a transport's links to its peers.
//!
//! What is not in use makes room first, then what was asked for longest ago. Knows nothing of what is
//! kept.

use std::collections::HashMap;
use std::hash::Hash;

/// See the module.
#[derive(Debug)]
pub struct Remembered<K, V> {
    known: HashMap<K, Known<V>>,
    most: usize,
    uses: u64,
}

#[derive(Debug)]
struct Known<V> {
    value: V,
    last_use: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Remembered<K, V> {
    /// Nothing yet, and never more than `most` things, but always one.
    pub fn new(most: usize) -> Self {
        Self {
            known: HashMap::new(),
            most: most.max(1),
            uses: 0,
        }
    }

    /// What is kept as `key`; if there is none, what `make` makes. That may take the place of another,
    /// which `in_use` tells apart.
    pub fn find_or_make(
        &mut self,
        key: K,
        in_use: impl Fn(&V) -> bool,
        make: impl FnOnce() -> V,
    ) -> V {
        self.uses += 1;
        if !self.known.contains_key(&key) {
            self.make_room(in_use);
        }
        let known = self.known.entry(key).or_insert_with(|| Known {
            value: make(),
            last_use: 0,
        });
        known.last_use = self.uses;
        known.value.clone()
    }

    /// What is kept as `key`; this is no use of it.
    pub fn get(&self, key: K) -> Option<&V> {
        self.known.get(&key).map(|known| &known.value)
    }

    /// All that is kept, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.known.values().map(|known| &known.value)
    }

    fn make_room(&mut self, in_use: impl Fn(&V) -> bool) {
        if self.known.len() < self.most {
            return;
        }
        let rank = |known: &Known<V>| (in_use(&known.value), known.last_use);
        let oldest = self.known.iter().min_by_key(|(_, known)| rank(known));
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(remembered: &Remembered<u8, u8>) -> Vec<u8> {
        let mut values: Vec<_> = remembered.values().copied().collect();
        values.sort_unstable();
        values
    }

    #[test]
    fn what_is_not_in_use_makes_room_then_what_was_used_longest_ago() {
        let mut three = Remembered::new(3);
        let odd = |value: &u8| value % 2 == 1;
        for key in [1, 2, 3, 2] {
            assert_eq!(three.find_or_make(key, odd, || key), key);
        }
        assert_eq!(three.find_or_make(5, odd, || 5), 5);
        assert_eq!(kept(&three), [1, 3, 5], "2 was not in use");
        assert_eq!(three.find_or_make(1, odd, || 99), 1, "it is there");
        assert_eq!(three.find_or_make(7, odd, || 7), 7);
        assert_eq!(kept(&three), [1, 5, 7], "3 was used longest ago");
        assert_eq!((three.get(5), three.get(3)), (Some(&5), None));
    }

    #[test]
    fn there_is_always_room_for_one() {
        let mut none = Remembered::new(0);
        for key in 1..4 {
            none.find_or_make(key, |_| true, || key);
            assert_eq!(kept(&none), [key]);
        }
    }
}
