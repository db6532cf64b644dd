//! Processes that die in mid-replay: hits get fewer, nothing else happens.

use std::time::Duration;

use flexkv_redis::local::LocalRedis;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::harness::{Home, Running, runs, signal, until};
use crate::model::Trace;

/// Long enough that what happens shortly after the start happens in mid-replay.
const REQUESTS: usize = 4_000;
const NODES: usize = 8;
const CAPACITY: usize = 250;

struct Replay {
    home: Home,
    trace: Trace,
    redis: LocalRedis,
}

impl Replay {
    async fn new() -> Self {
        let home = Home::new();
        let trace = Trace::generate(REQUESTS, 3);
        home.write("trace.jsonl", &trace.text());
        let redis = LocalRedis::start().await.unwrap();
        Self { home, trace, redis }
    }

    /// Starts the replay; returns it and its node processes once requests are being played.
    fn start(&self) -> (Running, Vec<u32>) {
        let tokens = CAPACITY * 512;
        let url = self.redis.url();
        let running = Running::start(&mut self.home.command(&format!(
            "replay --trace trace.jsonl --nodes {NODES} --node-tokens {tokens} --processes \
             --redis {url} --json"
        )));
        let line = running.error_line("node processes: ");
        let pids = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        (running, pids)
    }

    fn alone(&self) -> u64 {
        self.trace.hits(NODES, CAPACITY, false) as u64
    }

    fn ideal(&self) -> u64 {
        self.trace.hits(NODES, CAPACITY, true) as u64
    }

    /// Asserts that nothing is left of the replay.
    async fn assert_gone(&self, pids: &[u32]) {
        until("all node processes have ended", async || {
            !pids.iter().any(|pid| runs(*pid))
        })
        .await;
        self.home.assert_clean();
    }
}

#[tokio::test]
async fn a_killed_node_costs_hits_and_nothing_else() {
    let replay = Replay::new().await;
    let (running, pids) = replay.start();
    assert_eq!(pids.len(), NODES);
    sleep(Duration::from_millis(300)).await;
    signal(pids[1], Signal::KILL);
    let report = running.done().await.json();
    assert_eq!(report["requests"], REQUESTS);
    assert_eq!(report["blocks"], replay.trace.blocks());
    assert_eq!(report["dead_nodes"], 1);
    assert_eq!(report["corrupt_blocks"], 0);
    assert_eq!(report["verified_blocks"], report["hit_blocks"]);
    let ideal = replay.ideal();
    let hits = report["hit_blocks"].as_u64().unwrap();
    assert!(
        hits < ideal,
        "a third of the requests had no cache: {hits} of {ideal}"
    );
    assert!(hits > replay.alone(), "{hits}, alone {}", replay.alone());
    replay.assert_gone(&pids).await;
}

#[tokio::test]
async fn redis_may_come_back_empty_in_mid_replay() {
    let mut replay = Replay::new().await;
    let (running, pids) = replay.start();
    sleep(Duration::from_millis(300)).await;
    replay.redis.kill();
    sleep(Duration::from_millis(300)).await;
    replay.redis.restart().await.unwrap();
    let report = running.done().await.json();
    assert_eq!(report["dead_nodes"], 0);
    assert_eq!(report["corrupt_blocks"], 0);
    assert_eq!(report["verified_blocks"], report["hit_blocks"]);
    let hits = report["hit_blocks"].as_u64().unwrap();
    let (alone, ideal) = (replay.alone(), replay.ideal());
    assert!(
        hits > alone + (ideal - alone) / 4,
        "{hits}, alone {alone}, ideal {ideal}"
    );
    replay.assert_gone(&pids).await;
}

#[tokio::test]
async fn an_interrupted_replay_takes_its_nodes_with_it() {
    let replay = Replay::new().await;
    for how in [Signal::INT, Signal::TERM] {
        let (running, pids) = replay.start();
        signal(running.pid(), how);
        running.done().await.assert_failed(130, &["interrupted"]);
        replay.assert_gone(&pids).await;
    }
}

#[tokio::test]
async fn nodes_do_not_outlive_a_replay_that_was_killed() {
    let replay = Replay::new().await;
    let (running, pids) = replay.start();
    assert!(pids.iter().all(|pid| runs(*pid)));
    signal(running.pid(), Signal::KILL);
    assert_eq!(running.done().await.code, None);
    until("all node processes have ended", async || {
        !pids.iter().any(|pid| runs(*pid))
    })
    .await;
}
