//! What must hold when the store or a node fails, and when nothing does.

use std::time::Duration;

use flexkv_index::{FollowerEvent, PublisherConfig};

use crate::cluster::{Cluster, Faults};
use crate::node::prompt;

const SECOND: Duration = Duration::from_secs(1);

fn is_resync(event: &FollowerEvent) -> bool {
    matches!(event, FollowerEvent::Resync { .. })
}

fn is_rotated(event: &FollowerEvent) -> bool {
    matches!(event, FollowerEvent::Rotated { .. })
}

fn is_trouble(event: &FollowerEvent) -> bool {
    matches!(event, FollowerEvent::Trouble { .. })
}

#[test]
fn without_faults_nobody_resyncs_and_logs_stay_short() {
    let mut cluster = Cluster::new(1, 3);
    cluster.run(30 * SECOND, true);
    cluster.settle(5 * SECOND);
    for node in &cluster.nodes {
        let stats = node.publisher.stats();
        assert!(stats.rotations > 20, "{stats:?}");
        assert_eq!(stats.losses + stats.overflows + stats.retries, 0);
        assert!(node.staleness < SECOND, "{:?}", node.staleness);
        assert!(node.staleness > Duration::ZERO, "never measured");
    }
    assert!(cluster.count(is_rotated) > 100);
    assert_eq!(cluster.count(is_resync), 0);
    assert_eq!(cluster.count(is_trouble), 0);
    cluster.run(15 * SECOND, false);
    let (_, bytes) = cluster.store.size();
    assert!(
        bytes < 3 * 10_000,
        "old logs were not let go: {bytes} bytes"
    );
}

#[test]
fn answers_that_get_lost_do_no_harm() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 3);
        cluster.faults.silent = 40;
        cluster.run(20 * SECOND, true);
        cluster.settle(10 * SECOND);
        let troubles = cluster.count(is_trouble);
        assert_eq!(troubles, 0, "seed {seed}: entries were lost or doubled");
    }
}

#[test]
fn any_faults_are_recovered_from() {
    let (mut resyncs, mut troubles, mut gone) = (0, 0, 0);
    for seed in 0..60 {
        let mut cluster = Cluster::new(seed, 4);
        cluster.faults = Faults {
            silent: (seed % 4) as u8 * 10,
            losses: 5 + (seed % 3) as u32 * 20,
        };
        for _ in 0..1500 {
            cluster.step(true);
        }
        cluster.settle(60 * SECOND);
        // A lost end of a log that everybody had read shows at the owner's next append, which an
        // idle owner makes after two renewals at most.
        cluster.run(8 * SECOND, false);
        cluster.settle(5 * SECOND);
        let before = (cluster.count(is_resync), cluster.count(is_trouble));
        cluster.run(10 * SECOND, true);
        cluster.settle(5 * SECOND);
        let after = (cluster.count(is_resync), cluster.count(is_trouble));
        assert_eq!(before, after, "seed {seed}: no peace after the faults");
        resyncs += after.0;
        troubles += after.1;
        gone += cluster.count(|event| matches!(event, FollowerEvent::Gone { .. }));
    }
    let happened = [resyncs, troubles, gone];
    assert!(
        happened.iter().all(|n| *n > 10),
        "too few faults: {happened:?}"
    );
}

#[test]
fn a_store_that_comes_back_empty_costs_no_block() {
    let mut cluster = Cluster::new(3, 3);
    cluster.run(10 * SECOND, true);
    cluster.settle(5 * SECOND);
    let known: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.writer.stats().replicas)
        .collect();
    cluster.unreachable = true;
    cluster.run(20 * SECOND, false);
    cluster.now += 3600 * SECOND;
    cluster.store.flush();
    cluster.unreachable = false;
    let end = cluster.now + 8 * SECOND;
    while cluster.now < end {
        cluster.step(false);
        for (node, known) in cluster.nodes.iter().zip(&known) {
            assert!(
                node.writer.stats().replicas >= *known,
                "blocks were forgotten"
            );
            assert_eq!(node.follower.peers().count(), 2);
        }
    }
    // All was published again within those seconds.
    cluster.settle(Duration::ZERO);
    assert_eq!(
        cluster.count(|event| matches!(event, FollowerEvent::Gone { .. })),
        0
    );
}

#[test]
fn a_dead_node_disappears_and_stays_away() {
    let mut cluster = Cluster::new(4, 3);
    cluster.run(5 * SECOND, true);
    cluster.settle(5 * SECOND);
    let dead = cluster.nodes.remove(2);
    cluster.paused.pop();
    cluster.run(30 * SECOND, false);
    cluster.settle(5 * SECOND);
    for node in &cluster.nodes {
        assert_eq!(node.owner_of(dead.id()), None);
        let gone = FollowerEvent::Gone {
            node: dead.id().clone(),
        };
        assert_eq!(
            node.events.iter().filter(|event| **event == gone).count(),
            1
        );
    }
}

#[test]
fn a_restarted_node_replaces_its_former_life_at_once() {
    let mut cluster = Cluster::new(5, 3);
    cluster.run(5 * SECOND, true);
    cluster.settle(5 * SECOND);
    let former = cluster.nodes[0].id().clone();
    cluster.restart(0);
    cluster.settle(3 * SECOND);
    for node in &cluster.nodes[1..] {
        assert_eq!(
            node.owner_of(&former),
            None,
            "its lease has not expired yet"
        );
        let superseded = FollowerEvent::Superseded {
            node: former.clone(),
            by: cluster.nodes[0].id().clone(),
        };
        assert!(node.events.contains(&superseded));
    }
    cluster.run(20 * SECOND, true);
    cluster.settle(5 * SECOND);
    let joined = cluster.count(|event| {
        *event
            == FollowerEvent::Joined {
                node: former.clone(),
            }
    });
    assert_eq!(joined, 2, "each of the other two saw it once");
}

#[test]
fn a_paused_node_rejoins_as_itself() {
    let mut cluster = Cluster::new(6, 3);
    cluster.run(5 * SECOND, true);
    cluster.settle(5 * SECOND);
    let id = cluster.nodes[0].id().clone();
    cluster.paused[0] = cluster.now + 40 * SECOND;
    cluster.run(39 * SECOND, false);
    assert_eq!(cluster.nodes[1].owner_of(&id), None);
    cluster.run(2 * SECOND, false);
    cluster.settle(5 * SECOND);
    assert!(cluster.nodes[1].owner_of(&id).is_some());
    assert_eq!(*cluster.nodes[0].id(), id);
}

#[test]
fn a_queue_that_runs_over_ends_in_a_checkpoint() {
    let config = PublisherConfig {
        max_queue_bytes: 100_000,
        ..PublisherConfig::default()
    };
    let mut cluster = Cluster::with_config(7, 2, config);
    cluster.run(2 * SECOND, true);
    cluster.settle(5 * SECOND);
    cluster.unreachable = true;
    for _ in 0..20_000 {
        cluster.change(0);
    }
    cluster.run(SECOND, true);
    let stats = cluster.nodes[0].publisher.stats();
    assert_eq!(stats.overflows, 1, "{stats:?}");
    assert_eq!(stats.losses, 0);
    cluster.settle(10 * SECOND);
    assert_eq!(cluster.nodes[0].publisher.stats().epochs, 2);
}

#[test]
fn matches_go_on_while_a_node_is_read_again() {
    let mut cluster = Cluster::new(8, 2);
    let keys = prompt(0, 0);
    cluster.nodes[0].store(cluster.now, &keys);
    cluster.settle(5 * SECOND);
    let id = cluster.nodes[0].id().clone();
    cluster.nodes[0].publisher.republish();
    for _ in 0..1000 {
        cluster.step(false);
        let reader = &cluster.nodes[1];
        let owner = reader.owner_of(&id).expect("still a peer");
        assert_eq!(reader.believes(owner, &keys).len(), keys.len());
    }
    assert_eq!(cluster.count(is_resync), 1);
    cluster.settle(SECOND);
}
