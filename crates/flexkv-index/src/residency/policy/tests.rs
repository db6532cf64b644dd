//! Every policy against a model that keeps plain vectors and searches them.

use proptest::prelude::*;

use super::*;

/// A block of a model.
#[derive(Clone, Copy, Debug)]
struct Block {
    id: u32,
    fingerprint: u64,
    uses: u32,
    /// When it was used last.
    used: u64,
    /// Whether it is in the second of two queues.
    second: bool,
}

/// The blocks of a model: one vector for each queue would do, but one with marks is simpler. The
/// oldest comes first.
#[derive(Debug, Default)]
struct Model {
    blocks: Vec<Block>,
    last: Option<u32>,
    ghosts: Vec<u64>,
    now: u64,
}

impl Model {
    fn take(&mut self, id: u32) -> Block {
        let at = self.blocks.iter().position(|block| block.id == id);
        self.blocks.remove(at.expect("it is there"))
    }

    fn count(&self, second: bool) -> usize {
        self.blocks
            .iter()
            .filter(|block| block.second == second)
            .count()
    }

    fn oldest(&self, second: bool) -> Option<u32> {
        let mut blocks = self.blocks.iter();
        blocks
            .find(|block| block.second == second)
            .map(|block| block.id)
    }

    /// Puts `block` just behind the block `newer`, or at the new end.
    fn put(&mut self, block: Block, newer: Option<u32>) {
        let at = newer.and_then(|newer| self.blocks.iter().position(|it| it.id == newer));
        self.blocks.insert(at.unwrap_or(self.blocks.len()), block);
    }

    fn insert(&mut self, kind: PolicyKind, id: u32, fingerprint: u64, parent: Option<u32>) {
        self.now += 1;
        let mut block = Block {
            id,
            fingerprint,
            uses: 0,
            used: self.now,
            second: false,
        };
        let parent = parent.and_then(|id| self.blocks.iter().find(|it| it.id == id).copied());
        let behind = match kind {
            PolicyKind::Lru => parent,
            PolicyKind::Fifo => parent.filter(|it| self.last == Some(it.id)),
            PolicyKind::Lfu => {
                block.uses = 1;
                parent.filter(|it| it.uses == 1)
            }
            PolicyKind::Slru => parent.filter(|it| !it.second),
            PolicyKind::S3Fifo => {
                block.second = self.ghosts.contains(&fingerprint);
                let last = self.last;
                parent.filter(|it| last == Some(it.id) && it.second == block.second)
            }
            PolicyKind::HalfAge => {
                block.second = self.ghosts.contains(&fingerprint);
                let parent = parent.filter(|it| it.second == block.second);
                block.used = parent.map_or(self.now, |it| it.used);
                parent
            }
        };
        self.put(block, behind.map(|it| it.id));
        self.last = Some(id);
    }

    fn touch(&mut self, kind: PolicyKind, id: u32) {
        self.now += 1;
        match kind {
            PolicyKind::Fifo => {}
            PolicyKind::Lru => {
                let block = self.take(id);
                self.put(block, None);
            }
            PolicyKind::Lfu => {
                let block = self.take(id);
                let uses = (block.uses + 1).min(255);
                self.put(Block { uses, ..block }, None);
            }
            PolicyKind::Slru => {
                let block = self.take(id);
                self.put(
                    Block {
                        second: true,
                        ..block
                    },
                    None,
                );
                self.balance();
            }
            PolicyKind::HalfAge => {
                let block = self.take(id);
                let used = Block {
                    used: self.now,
                    second: true,
                    ..block
                };
                self.put(used, None);
            }
            PolicyKind::S3Fifo => {
                let block = self.blocks.iter_mut().find(|block| block.id == id);
                let block = block.expect("it is there");
                block.uses = (block.uses + 1).min(3);
            }
        }
    }

    /// Protected blocks are four fifths at most.
    fn balance(&mut self) {
        while self.count(true) > self.blocks.len() * 4 / 5 {
            let id = self.oldest(true).expect("there are some");
            let block = self.take(id);
            self.put(
                Block {
                    second: false,
                    ..block
                },
                None,
            );
        }
    }

    fn remove(&mut self, kind: PolicyKind, id: u32) {
        let block = self.take(id);
        self.last = self.last.filter(|last| *last != id);
        if kind == PolicyKind::Slru {
            self.balance();
        }
        if kind == PolicyKind::HalfAge || (kind == PolicyKind::S3Fifo && !block.second) {
            self.ghosts.push(block.fingerprint);
            let most = self.blocks.len().max(1);
            let over = self.ghosts.len().saturating_sub(most);
            self.ghosts.drain(..over);
        }
    }

    fn victim(&mut self, kind: PolicyKind) -> Option<u32> {
        match kind {
            PolicyKind::Lru | PolicyKind::Fifo => self.blocks.first().map(|block| block.id),
            PolicyKind::Lfu => {
                let least = self.blocks.iter().map(|block| block.uses).min()?;
                let mut blocks = self.blocks.iter();
                blocks
                    .find(|block| block.uses == least)
                    .map(|block| block.id)
            }
            PolicyKind::Slru => self.oldest(false).or_else(|| self.oldest(true)),
            PolicyKind::HalfAge => {
                let age = |block: &&Block| {
                    let twice = 2 * (self.now - block.used);
                    if block.second { twice / 2 } else { twice }
                };
                // The first of the oldest ones, of those that were used once before the others.
                let oldest = self.blocks.iter().map(|block| age(&block)).max()?;
                let mut ties = self.blocks.iter().filter(|block| age(block) == oldest);
                let once = ties.clone().find(|block| !block.second);
                once.or_else(|| ties.next()).map(|block| block.id)
            }
            PolicyKind::S3Fifo => loop {
                let due = 10 * self.count(false) >= self.blocks.len();
                let small = self.oldest(false).filter(|_| due);
                let id = small.or_else(|| self.oldest(true))?;
                let block = self.take(id);
                if block.second && block.uses > 0 {
                    let uses = block.uses - 1;
                    self.put(Block { uses, ..block }, None);
                } else if !block.second && block.uses > 1 {
                    let moved = Block {
                        uses: 0,
                        second: true,
                        ..block
                    };
                    self.put(moved, None);
                } else {
                    self.blocks.insert(0, block);
                    return Some(id);
                }
            },
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A block comes after the one that lies so far back among those there, or after none.
    Insert(u64, Option<usize>),
    Touch(usize),
    Remove(usize),
    Evict,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..40, prop::option::weighted(0.7, 0usize..4)).prop_map(|(f, p)| Step::Insert(f, p)),
        4 => any::<usize>().prop_map(Step::Touch),
        1 => any::<usize>().prop_map(Step::Remove),
        3 => Just(Step::Evict),
    ]
}

proptest! {
    #[test]
    fn each_does_as_its_model(steps in prop::collection::vec(any_step(), 0..300)) {
        for kind in PolicyKind::ALL {
            let (mut policy, mut model) = (kind.make(), Model::default());
            let mut here: Vec<u32> = Vec::new();
            for step in &steps {
                match *step {
                    Step::Insert(fingerprint, back) => {
                        let id = (0u32..).find(|id| !here.contains(id)).expect("numbers");
                        let parent = back.and_then(|back| here.iter().rev().nth(back).copied());
                        policy.on_insert(EntryId(id), fingerprint, parent.map(EntryId));
                        model.insert(kind, id, fingerprint, parent);
                        here.push(id);
                    }
                    Step::Touch(n) if !here.is_empty() => {
                        let id = here[n % here.len()];
                        policy.on_touch(EntryId(id));
                        model.touch(kind, id);
                    }
                    Step::Remove(n) if !here.is_empty() => {
                        let id = here.swap_remove(n % here.len());
                        policy.on_remove(EntryId(id));
                        model.remove(kind, id);
                    }
                    Step::Evict => {
                        let victim = policy.next_victim(None).map(|id| id.0);
                        prop_assert_eq!(victim, model.victim(kind), "{}", kind);
                        let Some(id) = victim else { continue };
                        here.retain(|it| *it != id);
                        policy.on_remove(EntryId(id));
                        model.remove(kind, id);
                    }
                    Step::Touch(_) | Step::Remove(_) => {}
                }
            }
            // Whatever the order: all of them can be had, each once.
            let mut seen = Vec::new();
            let mut next = policy.next_victim(None);
            while let Some(id) = next {
                seen.push(id.0);
                prop_assert!(seen.len() <= here.len(), "{} goes round", kind);
                next = policy.next_victim(Some(id));
            }
            prop_assert_eq!(seen.len(), here.len(), "{} leaves blocks out", kind);
        }
    }
}

#[test]
fn names_are_read_as_they_are_shown() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!("LRU".parse::<PolicyKind>().is_err());
}

/// Ten blocks, half of which are used, then `scan` new ones: how many of the used ones are still there.
fn kept_after(kind: PolicyKind, scan: u32) -> usize {
    let mut policy = kind.make();
    (0..10).for_each(|id| policy.on_insert(EntryId(id), id.into(), None));
    for _ in 0..3 {
        (0..5).for_each(|id| policy.on_touch(EntryId(id)));
    }
    let mut kept = 5;
    for new in 10..10 + scan {
        let victim = policy.next_victim(None).expect("there are ten");
        policy.on_remove(victim);
        kept -= usize::from(victim.0 < 5);
        policy.on_insert(EntryId(new), new.into(), None);
    }
    kept
}

#[test]
fn what_is_used_often_outlives_a_scan() {
    for kind in PolicyKind::ALL {
        let [short, long] = match kind {
            PolicyKind::Lru | PolicyKind::Fifo => [0, 0],
            PolicyKind::HalfAge => [3, 0],
            PolicyKind::Lfu | PolicyKind::Slru | PolicyKind::S3Fifo => [5, 5],
        };
        assert_eq!(kept_after(kind, 10), short, "{kind}");
        assert_eq!(kept_after(kind, 30), long, "{kind}");
    }
}

#[test]
fn by_half_age_a_block_that_comes_back_soon_was_used_again() {
    let first_to_go = |comes_back: u64| {
        let mut policy = HalfAge::default();
        (0..4).for_each(|id| policy.on_insert(EntryId(id), id.into(), None));
        policy.on_remove(EntryId(0));
        policy.on_insert(EntryId(0), comes_back, None);
        (4..7).for_each(|id| {
            policy.on_insert(EntryId(id), id.into(), None);
            policy.on_remove(EntryId(id - 3));
        });
        policy.next_victim(None)
    };
    assert_eq!(
        first_to_go(0),
        Some(EntryId(4)),
        "block 0 counts as younger"
    );
    assert_eq!(first_to_go(99), Some(EntryId(0)), "it is older");
}
