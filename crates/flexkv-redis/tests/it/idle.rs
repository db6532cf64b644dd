//! How many commands an idle node costs the server, those inside scripts included.

use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{LogCursor, MetadataStore};
use flexkv_redis::RedisStore;
use flexkv_redis::local::LocalRedis;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::server::{LONG, cursor, entries, server, store, tell};

/// How long a node is watched, in units of its renewals.
const ROUNDS: u32 = 4;
/// As a node with the defaults has them.
const LEASE: Duration = Duration::from_secs(10);
const MEMBERS_EVERY: Duration = Duration::from_secs(2);
/// Commands a second that an idle node may cost.
const BUDGET: f64 = 2.0;

/// Calls of all commands so far, and of which, as the server counts them. Our own questions are
/// left out.
async fn calls(servers: &[LocalRedis]) -> (u64, String) {
    let (mut sum, mut which) = (0, String::new());
    for server in servers {
        let stats = tell(server, "INFO commandstats").await;
        for line in stats.lines().filter_map(|l| l.strip_prefix("cmdstat_")) {
            let (command, rest) = line.split_once(":calls=").expect("calls");
            let calls = rest.split(',').next().unwrap_or_default();
            let ours = ["info", "quit", "ping", "cluster|", "replconf", "command"];
            if !ours.iter().any(|name| command.starts_with(name)) {
                sum += calls.parse::<u64>().expect("a number");
                which += &format!("{command}={calls} ");
            }
        }
    }
    (sum, which)
}

/// What an idle node asks of the store, for a few renewals; says for how long.
async fn idle(store: &RedisStore, cursors: &[LogCursor]) -> Duration {
    let begun = Instant::now();
    let (mut renew_at, mut members_at) = (begun, begun);
    while begun.elapsed() < ROUNDS * LEASE / 3 {
        if Instant::now() >= renew_at {
            renew_at = Instant::now() + LEASE / 3;
            let renewed = store.renew("n0", Bytes::from("r"), "n0.1", LEASE).await;
            assert!(renewed.expect("renew").log_kept);
        }
        if Instant::now() >= members_at {
            members_at = Instant::now() + MEMBERS_EVERY;
            let members = store.members().await.expect("members");
            assert_eq!(members.len(), cursors.len());
        }
        let wait = members_at.min(renew_at) - Instant::now();
        assert_eq!(store.read(cursors, 64, wait).await, Ok(vec![]));
    }
    begun.elapsed()
}

/// Asserts that one of `nodes` nodes with logs on `servers` keeps to its budget.
async fn keeps_to_its_budget(servers: &[LocalRedis], store: RedisStore, nodes: usize) {
    let mut cursors = Vec::new();
    for n in 0..nodes {
        let (name, log) = (format!("n{n}"), format!("n{n}.1"));
        let made = store.append(&log, &entries(1..30, 1000), true, LONG).await;
        made.expect("append");
        let renewed = store.renew(&name, Bytes::from("r"), &log, LONG).await;
        renewed.expect("renew");
        cursors.push(cursor(&log, 29));
    }
    store.members().await.expect("members");
    // Connections are opened at the first read.
    let begun = store.read(&cursors, 64, Duration::from_secs(2)).await;
    assert_eq!(begun, Ok(vec![]));
    let (before, _) = calls(servers).await;
    let time = idle(&store, &cursors).await;
    let (after, which) = calls(servers).await;
    let rate = (after - before) as f64 / time.as_secs_f64();
    assert!(rate <= BUDGET, "{rate:.2} commands a second: {which}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_to_its_budget_among_many() {
    let servers = [server().await];
    let store = store(&servers[0]).await;
    keeps_to_its_budget(&servers, store, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_to_its_budget_in_a_cluster() {
    let cluster = Cluster::start(0).await;
    let store = cluster.store().await;
    keeps_to_its_budget(&cluster.nodes, store, 100).await;
}
