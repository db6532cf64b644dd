//! One node: what it holds, its publisher, its follower and its snapshot.

use std::time::Duration;

use flexkv_block::{BlockKey, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_index::{
    Follower, FollowerConfig, FollowerEvent, MatchOptions, NodeId, NodeInfo, OwnerId, OwnerSet,
    PrefixMatch, PublishAction, Publisher, PublisherConfig, Removed, Residency, Snapshot,
    SnapshotWriter, snapshot,
};

use crate::store::Store;

/// Prompts have so many blocks; the first half of them is shared by the prompt's variants.
pub(crate) const PROMPT_BLOCKS: u64 = 40;

pub(crate) fn prompt(number: u64, variant: u64) -> Vec<BlockKey> {
    let block = |i: u64| {
        let variant = if i < PROMPT_BLOCKS / 2 {
            0
        } else {
            1 + variant
        };
        let n = (number * 64 + variant) * PROMPT_BLOCKS + i + 1;
        BlockKey::from_u128(u128::from(n) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    };
    (0..PROMPT_BLOCKS).map(block).collect()
}

pub(crate) struct Node {
    pub(crate) publisher: Publisher,
    pub(crate) follower: Follower,
    pub(crate) writer: SnapshotWriter,
    pub(crate) snapshot: Snapshot,
    pub(crate) held: Residency,
    pub(crate) events: Vec<FollowerEvent>,
    /// Largest time from a change to its being seen here again.
    pub(crate) staleness: Duration,
    next_members: Duration,
    slots: u32,
}

pub(crate) fn info(number: usize, incarnation: u64) -> NodeInfo {
    let node = NodeId {
        name: format!("n{number}").parse().expect("a good name"),
        incarnation,
    };
    let endpoints = vec![format!("tcp://10.0.0.{number}:7000")];
    NodeInfo::new(
        node,
        NamespaceId::from_u128(1),
        4096,
        String::new(),
        endpoints,
    )
    .expect("good info")
}

impl Node {
    pub(crate) fn new(number: usize, incarnation: u64, config: PublisherConfig) -> Self {
        let info = info(number, incarnation);
        let (writer, snapshot) = snapshot();
        let follower_config = FollowerConfig {
            reload_max: Duration::from_secs(4),
            ..FollowerConfig::default()
        };
        Self {
            publisher: Publisher::new(config, info.clone()),
            follower: Follower::new(follower_config, info),
            writer,
            snapshot,
            held: Residency::default(),
            events: Vec::new(),
            staleness: Duration::ZERO,
            next_members: Duration::ZERO,
            slots: 0,
        }
    }

    pub(crate) fn id(&self) -> &NodeId {
        self.publisher.info().node()
    }

    fn new_location(&mut self, tier: Tier) -> Location {
        self.slots += 1;
        Location {
            tier,
            slot: SlotId(self.slots),
            generation: Generation::new(1 + self.slots / 100).expect("a good generation"),
        }
    }

    /// Stores the missing ones of a prompt's leading blocks.
    pub(crate) fn store(&mut self, now: Duration, keys: &[BlockKey]) {
        for (i, key) in keys.iter().enumerate() {
            if self.held.get(*key).is_some() {
                continue;
            }
            let parent = i.checked_sub(1).map(|i| keys[i]);
            let location = self.new_location(Tier::Host);
            self.held.insert(*key, parent, location);
            let parent = parent.map(BlockKey::fingerprint);
            self.publisher
                .stored(now, parent, &[key.fingerprint()], &[location]);
        }
        self.held.touch(keys);
    }

    /// Gives up a block of a tier; one in memory may move to the SSD instead.
    pub(crate) fn evict(&mut self, now: Duration, from: Tier, to_ssd: bool) {
        let Some((key, location)) = self.held.next_victim(from, None) else {
            return;
        };
        let parent = self.held.parent(key);
        if to_ssd && from == Tier::Host {
            let ssd = self.new_location(Tier::Ssd);
            self.held.insert(key, parent, ssd);
        }
        let fingerprint = key.fingerprint();
        match self.held.remove(key, location) {
            Removed::Gone => self.publisher.removed(now, &[fingerprint]),
            Removed::Left(left) => {
                let parent = parent.map(BlockKey::fingerprint);
                self.publisher.stored(now, parent, &[fingerprint], &[left]);
            }
            Removed::Absent => panic!("the victim was not there"),
        }
    }

    /// What to ask of the store next.
    pub(crate) fn poll(&mut self, now: Duration) -> Option<PublishAction> {
        let action = self.publisher.poll(now, &self.held)?;
        assert_eq!(
            self.publisher.poll_timeout(),
            None,
            "an action is under way"
        );
        assert_eq!(self.publisher.poll(now, &self.held), None);
        Some(action)
    }

    /// Whether the list of members is due.
    pub(crate) fn members_due(&mut self, now: Duration) -> bool {
        let due = now >= self.next_members;
        if due {
            self.next_members = now + Duration::from_secs(1);
        }
        due
    }

    pub(crate) fn read_members(&mut self, now: Duration, store: &mut Store) {
        let members = store.members(now);
        self.follower.members(now, &members, &mut self.writer);
        self.take_events(now);
    }

    pub(crate) fn read_logs(&mut self, now: Duration, store: &mut Store, limit: usize) {
        for (log, after) in self.follower.cursors() {
            let entries = store.read(now, &log, after, limit);
            self.follower.entries(now, &log, &entries, &mut self.writer);
        }
        self.writer.sweep(100);
        self.take_events(now);
    }

    fn take_events(&mut self, now: Duration) {
        for event in self.follower.take_events() {
            match &event {
                FollowerEvent::OwnVisible { sequence } => {
                    let staleness = self.publisher.staleness(now, *sequence);
                    self.staleness = self.staleness.max(staleness.unwrap_or_default());
                }
                FollowerEvent::Trouble { node, .. } if node == self.id() => {
                    self.publisher.republish();
                }
                _ => {}
            }
            self.events.push(event);
        }
    }

    /// Under which owner this node sees another one.
    pub(crate) fn owner_of(&self, node: &NodeId) -> Option<OwnerId> {
        let mut peers = self.follower.peers();
        peers.find_map(|(owner, record)| (record.info.node() == node).then_some(owner))
    }

    /// Where this node believes the leading blocks of a prompt to lie at one owner.
    pub(crate) fn believes(&self, owner: OwnerId, keys: &[BlockKey]) -> Vec<Option<Location>> {
        let mut exclude = OwnerSet::default();
        for (other, _) in self.follower.peers() {
            if other != owner {
                exclude.insert(other);
            }
        }
        let options = MatchOptions {
            prefer: None,
            exclude: &exclude,
        };
        let mut found = PrefixMatch::default();
        self.snapshot.match_prefix(keys, &options, &mut found);
        let mut locations = Vec::new();
        for run in found.runs {
            assert_eq!(run.owner, owner, "a match with an owner that is no peer");
            self.snapshot.locate(keys, run, &mut locations);
        }
        locations
    }

    /// Where this node really has the leading blocks of a prompt.
    pub(crate) fn really(&self, keys: &[BlockKey]) -> Vec<Option<Location>> {
        let leading = self.held.leading(keys);
        keys[..leading]
            .iter()
            .map(|key| self.held.get(*key))
            .collect()
    }
}
