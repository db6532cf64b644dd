//! Node processes on a Redis server that goes through everything that servers go through. Each
//! test looks at what users would notice: blocks are seen by other nodes again, no owner is lost or
//! invented, and engines are served meanwhile.

use std::time::Duration;

use flexkv_block::{Checksum, NamespaceId};
use flexkv_engine::EngineClient;
use flexkv_index::record::PROTOCOL_VERSION;
use flexkv_index::{NodeId, NodeInfo, NodeRecord};
use flexkv_ports::MetadataStore as _;
use flexkv_redis::local::LocalRedis;
use flexkv_redis::{RedisConfig, RedisStore};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::harness::{Home, Running, signal, until};
use crate::node::{NodeProcess, configure, keys, load, store};

/// What `configure` says.
const LEASE: Duration = Duration::from_secs(2);
const NAMESPACE: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;

/// Sends commands and returns what came back, once all are answered.
async fn tell(redis: &LocalRedis, commands: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port()))
        .await
        .unwrap();
    let lines = format!("{commands}\r\nQUIT\r\n");
    stream.write_all(lines.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Two nodes that see each other, each with an engine; a has 4 blocks, which b knows of.
struct Pair {
    home: Home,
    redis: LocalRedis,
    a: NodeProcess,
    b: NodeProcess,
    at_a: EngineClient,
    at_b: EngineClient,
    /// First key that was not stored yet.
    next: u128,
}

impl Pair {
    async fn new() -> Self {
        Self::on(LocalRedis::start().await.unwrap()).await
    }

    async fn on(redis: LocalRedis) -> Self {
        let home = Home::new();
        let more = format!("redis.url = '{}'", redis.url());
        let a = NodeProcess::start(&home, "a", &more);
        let b = NodeProcess::start(&home, "b", &more);
        a.sees(1);
        b.sees(1);
        let (at_a, at_b) = (a.attach().await, b.attach().await);
        let mut pair = Self {
            home,
            redis,
            a,
            b,
            at_a,
            at_b,
            next: 1,
        };
        pair.shares().await;
        pair
    }

    /// Asserts that what a stores from now on becomes visible to b.
    async fn shares(&mut self) {
        let first = self.store(4).await;
        self.b_sees(first, 4).await;
    }

    /// Stores `count` blocks at a; says the first one's key.
    async fn store(&mut self, count: u128) -> u128 {
        let first = self.next;
        self.next += count;
        store(&self.at_a, &keys(first, count)).await;
        first
    }

    async fn b_sees(&self, first: u128, count: u128) {
        until("b loads what a stored", async || {
            load(&self.at_b, &keys(first, count)).await.0 == count as usize
        })
        .await;
    }

    /// Asserts that both nodes serve their engines without anyone's help, and that b still fetches
    /// the `count` blocks from `first` on, which it knew of.
    async fn goes_on(&mut self, first: u128, count: u128) {
        let own = self.store(2).await;
        assert_eq!(load(&self.at_a, &keys(own, 2)).await, (2, 0));
        let known = keys(first, count);
        assert_eq!(load(&self.at_b, &known).await.0, known.len());
    }

    /// Asserts that neither node has lost or found a peer since the last look.
    async fn nobody_was_lost_or_invented(&self) {
        for node in [&self.a, &self.b] {
            let name = node.ready["name"].as_str().unwrap();
            let metrics = node.metrics().await;
            for expect in [
                format!("flexkv_peers{{node=\"{name}\"}} 1"),
                format!("flexkv_peer_events_total{{node=\"{name}\",event=\"gone\"}} 0"),
            ] {
                assert!(
                    metrics.lines().any(|line| line == expect),
                    "{expect} is not in:\n{metrics}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_flush_takes_nothing_away() {
    let mut pair = Pair::new().await;
    let known = pair.store(4).await;
    pair.b_sees(known, 4).await;
    tell(&pair.redis, "FLUSHALL").await;
    pair.goes_on(known, 4).await;
    pair.shares().await;
    // Longer than any lease or wait for a lost node.
    sleep(4 * LEASE).await;
    pair.nobody_was_lost_or_invented().await;
    pair.shares().await;
}

#[tokio::test]
async fn killed_connections_are_made_again() {
    let mut pair = Pair::new().await;
    for _ in 0..5 {
        tell(&pair.redis, "CLIENT KILL TYPE normal").await;
        pair.shares().await;
    }
    pair.nobody_was_lost_or_invented().await;
}

#[tokio::test]
async fn a_server_that_pauses_or_hangs_holds_nobody_up() {
    let lines = "enable-debug-command yes\n";
    let redis = LocalRedis::start_configured(None, lines).await.unwrap();
    let mut pair = Pair::on(redis).await;
    for command in ["CLIENT PAUSE 3000 ALL", "DEBUG SLEEP 3"] {
        let known = pair.store(4).await;
        // b knows of them and has none itself.
        let at_b = pair.b.attach().await;
        until("b knows of the blocks", async || {
            use flexkv_ports::KvCache as _;
            let hit = at_b.match_prefix(&keys(known, 4)).await.unwrap();
            at_b.release(hit.ticket).await.unwrap();
            hit.blocks == 4
        })
        .await;
        let port = pair.redis.port();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let line = format!("{command}\r\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        pair.goes_on(known, 4).await;
        pair.shares().await;
    }
    pair.nobody_was_lost_or_invented().await;
}

#[tokio::test]
async fn a_password_that_is_wrong_for_a_while_costs_only_news() {
    let redis = LocalRedis::start_with_password("sesame").await.unwrap();
    let mut pair = Pair::on(redis).await;
    let known = pair.store(4).await;
    pair.b_sees(known, 4).await;
    let change = |from: &str, to: &str| {
        format!("AUTH {from}\r\nCONFIG SET requirepass {to}\r\nCLIENT KILL TYPE normal")
    };
    tell(&pair.redis, &change("sesame", "other")).await;
    pair.a.running.error_line("WRONGPASS");
    sleep(2 * LEASE).await;
    pair.goes_on(known, 4).await;
    tell(&pair.redis, &change("other", "sesame")).await;
    pair.shares().await;
    pair.nobody_was_lost_or_invented().await;
}

#[tokio::test]
async fn a_server_that_is_full_costs_only_news() {
    let mut pair = Pair::new().await;
    let known = pair.store(4).await;
    pair.b_sees(known, 4).await;
    tell(&pair.redis, "CONFIG SET maxmemory 1").await;
    let unseen = pair.store(4).await;
    until("the server has refused more", async || {
        tell(&pair.redis, "INFO errorstats")
            .await
            .contains("errorstat_OOM")
    })
    .await;
    let more = format!("redis.url = '{}'", pair.redis.url());
    let late = NodeProcess::start(&pair.home, "late", &more);
    late.sees(2);
    let at_late = late.attach().await;
    let own = keys(1000, 2);
    store(&at_late, &own).await;
    // Longer than any lease or wait for a lost node: leases are kept meanwhile, though nothing is
    // taken. The late one reads what others wrote before.
    sleep(4 * LEASE).await;
    pair.goes_on(known, 4).await;
    assert_eq!(load(&at_late, &keys(known, 4)).await, (4, 4));
    pair.nobody_was_lost_or_invented().await;
    tell(&pair.redis, "CONFIG SET maxmemory 0").await;
    pair.b_sees(unseen, 4).await;
    pair.shares().await;
    until("b loads what the late one stored", async || {
        load(&pair.at_b, &own).await.0 == 2
    })
    .await;
    late.end(Signal::TERM).await;
    pair.b.sees(1);
    pair.shares().await;
}

#[tokio::test]
async fn a_node_that_was_stopped_for_longer_than_its_lease_comes_back_with_its_blocks() {
    let mut pair = Pair::new().await;
    let known = pair.store(4).await;
    pair.b_sees(known, 4).await;
    let unseen = pair.store(2).await;
    signal(pair.a.running.pid(), Signal::STOP);
    pair.b.sees(0);
    assert_eq!(
        load(&pair.at_b, &keys(known, 4)).await,
        (4, 0),
        "b serves what it fetched before"
    );
    signal(pair.a.running.pid(), Signal::CONT);
    pair.b.sees(1);
    pair.b_sees(unseen, 2).await;
    pair.shares().await;
}

#[tokio::test]
async fn a_node_that_was_killed_is_forgotten_and_its_next_life_is_found() {
    let mut pair = Pair::new().await;
    let known = pair.store(4).await;
    signal(pair.a.running.pid(), Signal::KILL);
    pair.b.sees(0);
    assert_eq!(load(&pair.at_b, &keys(known, 4)).await, (0, 0));
    let more = format!("redis.url = '{}'", pair.redis.url());
    pair.a = NodeProcess::start(&pair.home, "a", &more);
    pair.at_a = pair.a.attach().await;
    pair.b.sees(1);
    pair.shares().await;
    let now = pair.b.metrics().await;
    let peers = "flexkv_peers{node=\"b\"} 1";
    assert!(now.lines().any(|line| line == peers), "{now}");
}

#[tokio::test]
async fn two_nodes_of_one_name_are_two_owners() {
    let mut pair = Pair::new().await;
    let more = format!("redis.url = '{}'", pair.redis.url());
    let path = configure(&pair.home, "twin", &more);
    let text = std::fs::read_to_string(path).unwrap();
    pair.home
        .write("twin.toml", &text.replace("name = 'twin'", "name = 'a'"));
    let mut command = pair.home.command("node --json --config twin.toml");
    let running = Running::start(&mut command);
    let ready = serde_json::from_str(&running.line()).unwrap();
    let twin = NodeProcess { running, ready };
    twin.sees(2);
    pair.b.sees(2);
    let at_twin = twin.attach().await;
    let own = keys(1000, 3);
    store(&at_twin, &own).await;
    until("b loads what the twin stored", async || {
        load(&pair.at_b, &own).await.0 == 3
    })
    .await;
    pair.shares().await;
    twin.end(Signal::TERM).await;
    pair.b.sees(1);
    pair.shares().await;
}

#[tokio::test]
async fn clocks_that_are_hours_apart_do_not_matter() {
    let home = Home::new();
    let redis = LocalRedis::start().await.unwrap();
    let more = format!("redis.url = '{}'", redis.url());
    let start = |name: &str, offset: &str| {
        configure(&home, name, &more);
        let mut command = home.command(&format!("node --json --config {name}.toml"));
        let running = Running::start(
            command
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME", offset)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        );
        let ready = serde_json::from_str(&running.line()).unwrap();
        NodeProcess { running, ready }
    };
    let (a, b) = (start("a", "+7h"), start("b", "-30d"));
    a.sees(1);
    b.sees(1);
    let (at_a, at_b) = (a.attach().await, b.attach().await);
    for (from, to, first) in [(&at_a, &at_b, 1), (&at_b, &at_a, 100)] {
        let keys = keys(first, 4);
        store(from, &keys).await;
        until("the other loads it", async || load(to, &keys).await.0 == 4).await;
    }
    // Longer than any lease: nobody takes the other for dead.
    sleep(4 * LEASE).await;
    let keys = keys(200, 4);
    store(&at_a, &keys).await;
    until("b loads it", async || load(&at_b, &keys).await.0 == 4).await;
    for (node, name) in [(&a, "a"), (&b, "b")] {
        let gone = format!("flexkv_peer_events_total{{node=\"{name}\",event=\"gone\"}} 0");
        assert!(node.metrics().await.lines().any(|line| line == gone));
    }
    a.end(Signal::TERM).await;
    b.sees(0);
}

/// The library that gives a process another wall clock. `cargo xtask it` installs it.
fn faketime() -> String {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
    let mut paths = places
        .map(|at| format!("/usr/lib/{at}/faketime/libfaketime.so.1"))
        .into_iter();
    let found = paths.find(|path| std::path::Path::new(path).exists());
    found.expect("libfaketime is not installed: `apt-get install faketime`")
}

#[tokio::test]
async fn clusters_and_models_on_one_server_do_not_meet() {
    let mut pair = Pair::new().await;
    let more = format!("redis.url = '{}'", pair.redis.url());
    let changed = |name: &str, from: &str, to: &str| {
        let path = configure(&pair.home, name, &more);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        pair.home
            .write(&format!("{name}.toml"), &text.replace(from, to));
        let mut command = pair
            .home
            .command(&format!("node --json --config {name}.toml"));
        let running = Running::start(&mut command);
        let ready = serde_json::from_str(&running.line()).unwrap();
        NodeProcess { running, ready }
    };
    let others = [
        changed("other-cluster", "cluster = 'it'", "cluster = 'it2'"),
        changed("other-model", "id = '0001", "id = '1001"),
    ];
    let known = pair.store(4).await;
    pair.b_sees(known, 4).await;
    sleep(LEASE).await;
    for node in &others {
        let at = node.attach().await;
        assert_eq!(load(&at, &keys(known, 4)).await, (0, 0));
        let name = node.ready["name"].as_str().unwrap();
        let alone = format!("flexkv_peers{{node=\"{name}\"}} 0");
        assert!(node.metrics().await.lines().any(|line| line == alone));
    }
    pair.nobody_was_lost_or_invented().await;
    pair.shares().await;
}

#[tokio::test]
async fn a_node_of_a_newer_version_is_refused_and_named() {
    let mut pair = Pair::new().await;
    let id = NamespaceId::from_u128(NAMESPACE);
    let config = RedisConfig::new(&pair.redis.url(), "it", id).unwrap();
    let newer = RedisStore::connect(config).await.unwrap();
    let node = NodeId {
        name: "future".parse().unwrap(),
        incarnation: 7,
    };
    let endpoints = vec!["tcp://127.0.0.1:9".to_owned()];
    let info = NodeInfo::new(node.clone(), id, 4096, String::new(), endpoints).unwrap();
    let record = NodeRecord {
        info,
        epoch: 1,
        log_start: 1,
        rotated: false,
    };
    let mut bytes = record.encode().to_vec();
    bytes[4..6].copy_from_slice(&(PROTOCOL_VERSION + 1).to_le_bytes());
    let end = bytes.len() - 8;
    let sum = Checksum::of(&bytes[..end]).0;
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    let long = Duration::from_secs(600);
    newer
        .renew(&node.to_string(), bytes.into(), &node.log(1), long)
        .await
        .unwrap();
    for running in [&pair.a.running, &pair.b.running] {
        let line = running.error_line("future.0000000000000007");
        let version = format!("speaks version {} of the protocol", PROTOCOL_VERSION + 1);
        assert!(line.contains(&version), "{line}");
        assert!(line.contains("Bring all nodes to one version"), "{line}");
    }
    pair.shares().await;
    pair.nobody_was_lost_or_invented().await;
}
