//! Several nodes and a store, driven step by step from one seed, and what must hold of them.

use std::time::Duration;

use flexkv_block::Tier;
use flexkv_index::{FollowerEvent, PublishOutcome, PublisherConfig};

use crate::node::{Node, PROMPT_BLOCKS, prompt};
use crate::store::Store;

pub(crate) const PROMPTS: u64 = 6;
pub(crate) const VARIANTS: u64 = 3;

/// How the store and the nodes misbehave.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Of 100 actions, how many get no answer; half of those are done nevertheless.
    pub(crate) silent: u8,
    /// Of 1000 steps, how many lose something, or pause or restart a node.
    pub(crate) losses: u32,
}

pub(crate) struct Cluster {
    pub(crate) now: Duration,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Node>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) faults: Faults,
    /// Nobody reaches the store.
    pub(crate) unreachable: bool,
    /// Nodes that are stopped, and until when.
    pub(crate) paused: Vec<Duration>,
    pub(crate) config: PublisherConfig,
}

impl Cluster {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let config = PublisherConfig {
            rotate_min_bytes: 2000,
            max_append_bytes: 2000,
            // Checkpoints take several parts, between which blocks come and go.
            max_entry_blocks: 16,
            ..PublisherConfig::default()
        };
        Self::with_config(seed, nodes, config)
    }

    pub(crate) fn with_config(seed: u64, nodes: usize, config: PublisherConfig) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let new = |i| Node::new(i, rng.u64(..), config.clone());
        Self {
            now: Duration::from_secs(1000),
            store: Store::default(),
            nodes: (0..nodes).map(new).collect(),
            rng,
            faults: Faults::default(),
            unreachable: false,
            paused: vec![Duration::ZERO; nodes],
            config,
        }
    }

    /// Replaces a node by a new life of it, which holds nothing.
    pub(crate) fn restart(&mut self, i: usize) {
        self.nodes[i] = Node::new(i, self.rng.u64(..), self.config.clone());
    }

    /// Some blocks come and go at a node.
    pub(crate) fn change(&mut self, i: usize) {
        let (now, rng, node) = (self.now, &mut self.rng, &mut self.nodes[i]);
        let keys = prompt(rng.u64(0..PROMPTS), rng.u64(0..VARIANTS));
        node.store(now, &keys[..rng.usize(1..=keys.len())]);
        let room = PROMPT_BLOCKS as usize * 3;
        while node.held.len() > room {
            let tier = if rng.bool() { Tier::Host } else { Tier::Ssd };
            node.evict(now, tier, rng.bool());
        }
    }

    /// What a node asks of the store is done, or not.
    pub(crate) fn publish(&mut self, i: usize) {
        for _ in 0..4 {
            let Some(action) = self.nodes[i].poll(self.now) else {
                return;
            };
            let silent = self.rng.u8(0..100) < self.faults.silent;
            let outcome = if self.unreachable {
                PublishOutcome::Unavailable
            } else if silent {
                match self.rng.u8(0..6) {
                    0 => PublishOutcome::Full,
                    1 => PublishOutcome::Denied,
                    2 => PublishOutcome::Unavailable,
                    _ => {
                        self.store.run(self.now, &action);
                        PublishOutcome::Unavailable
                    }
                }
            } else {
                self.store.run(self.now, &action)
            };
            self.nodes[i].publisher.handle(self.now, outcome);
        }
    }

    pub(crate) fn follow(&mut self, i: usize) {
        if self.unreachable || self.rng.u8(0..100) < self.faults.silent {
            return;
        }
        let (now, node) = (self.now, &mut self.nodes[i]);
        if node.members_due(now) {
            node.read_members(now, &mut self.store);
        }
        let limit = self.rng.usize(1..20);
        node.read_logs(now, &mut self.store, limit);
    }

    /// One step of time for everybody; `change`: whether blocks come and go.
    pub(crate) fn step(&mut self, change: bool) {
        self.now += Duration::from_millis(self.rng.u64(1..20));
        if self.rng.u32(0..1000) < self.faults.losses {
            self.lose_something();
        }
        for i in 0..self.nodes.len() {
            if self.now < self.paused[i] {
                continue;
            }
            if change && self.rng.u8(0..4) == 0 {
                self.change(i);
            }
            self.publish(i);
            self.follow(i);
        }
    }

    fn lose_something(&mut self) {
        let i = self.rng.usize(0..self.nodes.len());
        match self.rng.u8(0..9) {
            0 => self.store.flush(),
            1 => self.store.lose_a_log(&mut self.rng),
            2 => self.store.lose_a_lease(&mut self.rng),
            3 => self.store.lose_tails(&mut self.rng),
            4 => self.paused[i] = self.now + Duration::from_secs(self.rng.u64(1..30)),
            5 => self.restart(i),
            6 => self.now += Duration::from_secs(self.rng.u64(1..40)),
            7 => self.unreachable = !self.unreachable,
            _ => {
                self.publish(i);
                let own = self.nodes[i].id().to_string();
                let mut cursors = self.nodes[i].follower.cursors().into_iter();
                if let Some((log, after)) = cursors.find(|(log, _)| log.starts_with(&own)) {
                    self.store.damage(&log, after, &mut self.rng);
                }
            }
        }
    }

    /// What keeps the followers from knowing exactly what is there; `None` if nothing does.
    pub(crate) fn difference(&mut self) -> Option<String> {
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.publisher.is_settled() {
                return Some(format!("n{i} has not published everything"));
            }
        }
        for i in 0..self.nodes.len() {
            while !self.nodes[i].writer.sweep(1000) {}
            let others = (0..self.nodes.len()).filter(|j| *j != i);
            let held: usize = others.clone().map(|j| self.nodes[j].held.len()).sum();
            let known = self.nodes[i].writer.stats().replicas;
            if held != known {
                return Some(format!("n{i} knows {known} blocks of {held}"));
            }
            for j in others {
                if let Some(difference) = self.difference_between(i, j) {
                    return Some(difference);
                }
            }
        }
        None
    }

    fn difference_between(&self, i: usize, j: usize) -> Option<String> {
        let (reader, owner) = (&self.nodes[i], &self.nodes[j]);
        let Some(id) = reader.owner_of(owner.id()) else {
            return Some(format!("n{i} does not know n{j}"));
        };
        for number in 0..PROMPTS {
            for variant in 0..VARIANTS {
                let keys = prompt(number, variant);
                if reader.believes(id, &keys) != owner.really(&keys) {
                    return Some(format!("n{i} is wrong about prompt {number} at n{j}"));
                }
            }
        }
        None
    }

    /// Goes on without faults and changes until everybody knows everything.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    pub(crate) fn settle(&mut self, limit: Duration) {
        self.faults = Faults::default();
        self.unreachable = false;
        self.paused.fill(Duration::ZERO);
        let end = self.now + limit;
        loop {
            for _ in 0..10 {
                self.step(false);
            }
            let Some(difference) = self.difference() else {
                return;
            };
            if self.now > end {
                let events: Vec<_> = self
                    .nodes
                    .iter()
                    .map(|node| &node.events[node.events.len().saturating_sub(12)..])
                    .collect();
                panic!("after {limit:?}: {difference}; latest events {events:#?}");
            }
        }
    }

    /// Runs so long.
    pub(crate) fn run(&mut self, time: Duration, change: bool) {
        let end = self.now + time;
        while self.now < end {
            self.step(change);
        }
    }

    /// Number of events of all nodes that `is` holds for.
    pub(crate) fn count(&self, is: impl Fn(&FollowerEvent) -> bool) -> usize {
        let events = self.nodes.iter().flat_map(|node| &node.events);
        events.filter(|event| is(event)).count()
    }
}
