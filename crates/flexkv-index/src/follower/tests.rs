//! What a follower makes of lists and entries, good and bad.

use flexkv_block::{Generation, Location, NamespaceId, SlotId, Tier};

use super::*;
use crate::log::{Batch, Entry, EntryPlace, Rotate};
use crate::snapshot::snapshot;

const SECOND: Duration = Duration::from_secs(1);

fn info(name: &str, incarnation: u64, endpoint: &str) -> NodeInfo {
    info_in(name, incarnation, endpoint, 1, 4096)
}

fn info_in(name: &str, incarnation: u64, endpoint: &str, namespace: u128, bytes: u32) -> NodeInfo {
    let node = NodeId {
        name: name.parse().expect("a good name"),
        incarnation,
    };
    let namespace = NamespaceId::from_u128(namespace);
    NodeInfo::new(
        node,
        namespace,
        bytes,
        String::new(),
        vec![endpoint.to_owned()],
    )
    .expect("good info")
}

fn listed(info: &NodeInfo, epoch: u32, log_start: u64, rotated: bool) -> (String, Bytes) {
    let record = NodeRecord {
        info: info.clone(),
        epoch,
        log_start,
        rotated,
    };
    (info.node().to_string(), record.encode())
}

/// A follower on node `me`, with its snapshot's writer.
struct Rig {
    follower: Follower,
    writer: SnapshotWriter,
    now: Duration,
}

impl Rig {
    fn new() -> Self {
        let own = info("me", 1, "tcp://me:1");
        Self {
            follower: Follower::new(FollowerConfig::default(), own),
            writer: snapshot().0,
            now: Duration::ZERO,
        }
    }

    fn members(&mut self, members: &[(String, Bytes)]) -> Vec<FollowerEvent> {
        self.now += SECOND;
        self.follower.members(self.now, members, &mut self.writer);
        self.follower.take_events()
    }

    fn entries(&mut self, log: &str, entries: &[(u64, Bytes)]) -> Vec<FollowerEvent> {
        self.follower
            .entries(self.now, log, entries, &mut self.writer);
        self.follower.take_events()
    }

    fn blocks(&mut self) -> usize {
        while !self.writer.sweep(1000) {}
        self.writer.stats().replicas
    }
}

/// An entry of a node of incarnation 2.
fn entry(sequence: u64, entry: &Entry) -> (u64, Bytes) {
    let place = EntryPlace {
        incarnation: 2,
        sequence,
    };
    (sequence, entry.encode(place))
}

fn add(fingerprints: &[u64]) -> Batch {
    let at = |slot| Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    };
    let locations: Vec<_> = (0..fingerprints.len() as u32).map(at).collect();
    let mut batch = Batch::default();
    batch.add(None, fingerprints, &locations);
    batch
}

fn log_of(epoch: u32) -> String {
    info("b", 2, "tcp://b:1").node().log(epoch)
}

fn checkpoint(first: u64, fingerprints: &[u64]) -> Vec<(u64, Bytes)> {
    vec![
        entry(first, &Entry::Checkpoint(add(fingerprints))),
        entry(first + 1, &Entry::CheckpointEnd),
    ]
}

#[test]
fn members_that_cannot_take_part_are_refused_once_and_by_name() {
    let mut rig = Rig::new();
    let good = listed(&info("b", 2, "tcp://b:1"), 1, 1, false);
    let mut newer = good.1.to_vec();
    newer[4] = 2;
    let members = [
        ("b.0000000000000002".to_owned(), Bytes::from(newer)),
        listed(&info_in("c", 3, "tcp://c:1", 9, 4096), 1, 1, false),
        listed(&info_in("d", 4, "tcp://d:1", 1, 8192), 1, 1, false),
        ("e.0000000000000005".to_owned(), good.1.clone()),
        ("f.0000000000000006".to_owned(), Bytes::from_static(b"FK")),
    ];
    let said: Vec<_> = rig
        .members(&members)
        .into_iter()
        .map(|event| match event {
            FollowerEvent::Refused { member, reason } => format!("{member}: {reason}"),
            other => panic!("{other:?}"),
        })
        .collect();
    let words = [
        "b.0000000000000002: node speaks version 2",
        "c.0000000000000003: it holds blocks of another namespace",
        "d.0000000000000004: its blocks have 8192 bytes, ours 4096",
        "e.0000000000000005: its record is that of `b.0000000000000002`",
        "f.0000000000000006: node record ends within its magic",
    ];
    for (said, words) in said.iter().zip(words) {
        assert!(said.starts_with(words), "{said}");
    }
    assert_eq!(said.len(), words.len());
    assert_eq!(rig.members(&members), [], "said again");
    assert_eq!(rig.follower.cursors(), []);
    // Once its operator has brought it to our version, it takes part.
    let joined = rig.members(&[good]);
    assert!(matches!(joined[..], [FollowerEvent::Joined { .. }]));
    assert_eq!(rig.follower.cursors(), [(log_of(1), 0)]);
}

#[test]
fn a_node_is_visible_once_its_checkpoint_is_complete() {
    let mut rig = Rig::new();
    let b = info("b", 2, "tcp://b:1");
    rig.members(&[listed(&b, 1, 5, false)]);
    assert_eq!(rig.follower.cursors(), [(log_of(1), 4)]);
    rig.entries(&log_of(1), &checkpoint(5, &[1, 2, 3])[..1]);
    assert_eq!(rig.follower.peers().count(), 0);
    assert_eq!(rig.follower.loading(), 1);
    let changes = rig.follower.changes();
    rig.entries(&log_of(1), &checkpoint(5, &[1, 2, 3]));
    assert_eq!(rig.follower.peers().count(), 1);
    assert_ne!(rig.follower.changes(), changes);
    assert_eq!(rig.blocks(), 3);
    assert_eq!(rig.follower.cursors(), [(log_of(1), 6)]);
    let mut batch = add(&[1]);
    batch.remove(&[2, 3]);
    rig.entries(&log_of(1), &[entry(7, &Entry::Delta(batch))]);
    assert_eq!(rig.blocks(), 1);
}

#[test]
fn our_own_log_is_read_but_not_stored() {
    let mut rig = Rig::new();
    let own = info("me", 2, "tcp://me:1");
    rig.follower = Follower::new(FollowerConfig::default(), own.clone());
    rig.members(&[listed(&own, 1, 1, false)]);
    let mut entries = checkpoint(1, &[1, 2]);
    entries.push(entry(3, &Entry::Delta(add(&[5]))));
    let events = rig.entries(&own.node().log(1), &entries);
    assert_eq!(events[1..], [FollowerEvent::OwnVisible { sequence: 3 }]);
    assert_eq!(rig.blocks(), 0);
    assert_eq!(rig.follower.peers().count(), 0);
    assert_eq!(rig.follower.loading(), 0);
}

#[test]
fn a_gap_is_read_again_at_once_and_then_now_and_then() {
    let mut rig = Rig::new();
    let member = listed(&info("b", 2, "tcp://b:1"), 1, 1, false);
    rig.members(std::slice::from_ref(&member));
    let mut log = checkpoint(1, &[1, 2]);
    log.push(entry(4, &Entry::Delta(add(&[5]))));
    let resync = FollowerEvent::Resync {
        node: info("b", 2, "tcp://b:1").node().clone(),
        epoch: 1,
    };
    let events = rig.entries(&log_of(1), &log);
    let said = format!("{events:?}");
    assert!(said.contains("Gap { expected: 3, found: 4 }"), "{said}");
    assert!(events.contains(&resync));
    assert_eq!(rig.follower.cursors(), [(log_of(1), 0)]);
    assert!(
        !rig.entries(&log_of(1), &log).contains(&resync),
        "at once again"
    );
    assert_eq!(rig.follower.cursors(), [], "nothing is read meanwhile");
    assert_eq!(rig.blocks(), 2, "what was known is kept");
    let mut pauses = Vec::new();
    let mut since = rig.now;
    while pauses.len() < 8 {
        if rig.members(std::slice::from_ref(&member)).contains(&resync) {
            pauses.push((rig.now - since).as_secs());
            since = rig.now;
            rig.entries(&log_of(1), &log);
        }
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    // The node finds out, or is restarted: its new epoch ends the matter.
    rig.members(&[listed(&info("b", 2, "tcp://b:1"), 2, 5, false)]);
    assert_eq!(rig.follower.cursors(), [(log_of(2), 4)]);
    rig.entries(&log_of(2), &checkpoint(5, &[7]));
    assert_eq!(rig.blocks(), 1);
}

#[test]
fn a_damaged_or_misplaced_entry_is_named() {
    let bad = |sequence: u64, entry_bytes: (u64, Bytes), words: &str| {
        let mut rig = Rig::new();
        rig.members(&[listed(&info("b", 2, "tcp://b:1"), 1, 1, false)]);
        let mut log = checkpoint(1, &[1]);
        log.truncate(sequence as usize - 1);
        log.push(entry_bytes);
        let trouble = rig
            .entries(&log_of(1), &log)
            .into_iter()
            .find_map(|event| match event {
                FollowerEvent::Trouble { log, trouble, .. } => Some(format!("{log}: {trouble}")),
                _ => None,
            });
        let trouble = trouble.expect("nothing was found");
        assert!(trouble.contains(words), "{trouble}");
        assert!(trouble.starts_with(&log_of(1)), "{trouble}");
    };
    let rotate = |resume_after| {
        Entry::Rotate(Rotate {
            next_epoch: 2,
            resume_after,
        })
    };
    bad(
        3,
        (3, entry(4, &Entry::Delta(add(&[1]))).1),
        "entry 3: log entry is damaged",
    );
    bad(
        2,
        (2, Bytes::from_static(b"?")),
        "entry 2: log entry ends within its header",
    );
    bad(
        2,
        entry(2, &Entry::Delta(add(&[1]))),
        "entry 2 is of a kind",
    );
    bad(
        3,
        entry(3, &Entry::Checkpoint(add(&[1]))),
        "entry 3 is of a kind",
    );
    bad(3, entry(3, &Entry::CheckpointEnd), "entry 3 is of a kind");
    bad(2, entry(2, &rotate(9)), "entry 2 is of a kind");
    bad(3, entry(3, &rotate(3)), "entry 3 is of a kind");
    bad(
        1,
        entry(2, &Entry::CheckpointEnd),
        "entries from 1 on are missing",
    );
}

#[test]
fn the_end_of_an_old_log_leads_to_the_next_without_a_checkpoint() {
    let mut rig = Rig::new();
    let b = info("b", 2, "tcp://b:1");
    rig.members(&[listed(&b, 1, 1, false)]);
    rig.entries(&log_of(1), &checkpoint(1, &[1]));
    // The record may be seen first; the end of the log is then waited for.
    assert_eq!(rig.members(&[listed(&b, 2, 4, true)]), []);
    assert_eq!(rig.follower.cursors(), [(log_of(1), 2)]);
    let rotate = Entry::Rotate(Rotate {
        next_epoch: 2,
        resume_after: 5,
    });
    let events = rig.entries(&log_of(1), &[entry(3, &rotate)]);
    assert!(matches!(
        events[..],
        [FollowerEvent::Rotated { epoch: 2, .. }]
    ));
    assert_eq!(rig.follower.cursors(), [(log_of(2), 5)]);
    // An old list that arrives late changes nothing.
    assert_eq!(rig.members(&[listed(&b, 1, 1, false)]), []);
    assert_eq!(rig.follower.cursors(), [(log_of(2), 5)]);
    // A gap after that leads back to the start of the new log.
    rig.entries(&log_of(2), &[entry(9, &Entry::CheckpointEnd)]);
    assert_eq!(rig.follower.cursors(), [(log_of(2), 3)]);
}

#[test]
fn the_end_of_an_old_log_is_not_waited_for_in_vain() {
    let mut rig = Rig::new();
    let b = info("b", 2, "tcp://b:1");
    rig.members(&[listed(&b, 1, 1, false)]);
    rig.entries(&log_of(1), &checkpoint(1, &[1]));
    for _ in 0..2 {
        rig.members(&[listed(&b, 2, 4, true)]);
        assert_eq!(rig.follower.cursors(), [(log_of(1), 2)]);
    }
    let events = rig.members(&[listed(&b, 2, 4, true)]);
    assert!(matches!(
        events[..],
        [FollowerEvent::Resync { epoch: 2, .. }]
    ));
    assert_eq!(rig.follower.cursors(), [(log_of(2), 3)]);
    assert_eq!(rig.follower.peers().count(), 1, "what was known is kept");
    // Without Rotate, as after a loss, there is nothing to wait for.
    rig.members(&[listed(&b, 3, 8, false)]);
    assert_eq!(rig.follower.cursors(), [(log_of(3), 7)]);
}

#[test]
fn only_a_later_life_at_the_same_endpoint_replaces_a_node() {
    let mut rig = Rig::new();
    let list = |infos: &[&NodeInfo]| -> Vec<_> {
        infos.iter().map(|info| listed(info, 1, 1, false)).collect()
    };
    let first = info("b", 2, "tcp://b:1");
    let elsewhere = info("b", 3, "tcp://b:2");
    let namesake = info("c", 4, "tcp://b:1");
    let second = info("b", 5, "tcp://b:1");
    let old_me = info("me", 6, "tcp://me:1");
    rig.members(&list(&[&first]));
    rig.members(&list(&[&first, &elsewhere, &namesake, &old_me]));
    assert_eq!(
        rig.follower.cursors().len(),
        3,
        "all but our own earlier life"
    );
    let all = list(&[&first, &elsewhere, &namesake, &old_me, &second]);
    let events = rig.members(&all);
    let superseded = FollowerEvent::Superseded {
        node: first.node().clone(),
        by: second.node().clone(),
    };
    assert!(events.contains(&superseded), "{events:?}");
    assert_eq!(rig.members(&all), [], "it came back");
    assert_eq!(rig.follower.cursors().len(), 3);
}

#[test]
fn a_node_is_gone_after_several_lists_without_it() {
    let mut rig = Rig::new();
    let member = listed(&info("b", 2, "tcp://b:1"), 1, 1, false);
    rig.members(std::slice::from_ref(&member));
    rig.entries(&log_of(1), &checkpoint(1, &[1]));
    for _ in 0..4 {
        assert_eq!(rig.members(&[]), []);
    }
    assert_eq!(
        rig.members(std::slice::from_ref(&member)),
        [],
        "it is back in time"
    );
    rig.now += 1000 * SECOND;
    for _ in 0..3 {
        assert_eq!(rig.members(&[]), [], "the time without lists counts little");
    }
    let mut lists = 3;
    while rig.members(&[]).is_empty() {
        lists += 1;
    }
    assert_eq!(lists, 4);
    assert_eq!(rig.blocks(), 0);
    assert_eq!(rig.follower.peers().count(), 0);
}
