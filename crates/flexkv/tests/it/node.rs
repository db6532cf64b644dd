//! `flexkv node`: processes that engines attach to, with everything that can go wrong around them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_engine::EngineClient;
use flexkv_ports::{Filled, KvCache as _};
use flexkv_redis::local::LocalRedis;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Home, Running, signal, until};

const BLOCK_BYTES: usize = 4096;

/// Writes the configuration of node `name`; `more` goes before its sections.
pub(crate) fn configure(home: &Home, name: &str, more: &str) -> PathBuf {
    let socket = home.path(&format!("{name}-engines/node.sock"));
    let text = format!(
        "name = '{name}'\ncluster = 'it'\nsecret = 'it'\n\
         memory.slots = 64\nmemory.populate = false\n\
         network.listen = '127.0.0.1:0'\nmetrics.listen = '127.0.0.1:0'\n\
         timing.members_interval = '100 ms'\ntiming.lease = '2 s'\n\
         engine.socket = '{}'\n{more}\n\
         [namespace]\nid = '000102030405060708090a0b0c0d0e0f'\nblock_bytes = {BLOCK_BYTES}\n",
        socket.display()
    );
    home.write(&format!("{name}.toml"), &text)
}

pub(crate) struct NodeProcess {
    pub(crate) running: Running,
    pub(crate) ready: Value,
}

impl NodeProcess {
    /// Starts node `name` and waits until it is ready.
    pub(crate) fn start(home: &Home, name: &str, more: &str) -> Self {
        let path = configure(home, name, more);
        let text = std::fs::read_to_string(path).unwrap();
        Self::start_as(home, name, &text)
    }

    /// Starts node `name` with this configuration and waits until it is ready.
    pub(crate) fn start_as(home: &Home, name: &str, text: &str) -> Self {
        home.write(&format!("{name}.toml"), text);
        Self::run(
            &mut home.command(&format!("node --json --config {name}.toml")),
            name,
        )
    }

    /// Starts node `name` by this command and waits until it is ready.
    pub(crate) fn run(command: &mut Command, name: &str) -> Self {
        let running = Running::start(command);
        let ready: Value = serde_json::from_str(&running.line()).unwrap();
        assert_eq!(ready["event"], "ready");
        assert_eq!(ready["name"], name);
        assert_eq!(ready["pid"], running.pid());
        Self { running, ready }
    }

    pub(crate) async fn attach(&self) -> EngineClient {
        EngineClient::attach(self.ready["socket"].as_str().unwrap())
            .await
            .unwrap()
    }

    /// Reads events until the node sees `peers` others.
    pub(crate) fn sees(&self, peers: u64) {
        loop {
            let event: Value = serde_json::from_str(&self.running.line()).unwrap();
            if event["event"] == "peers" && event["peers"] == peers {
                return;
            }
        }
    }

    pub(crate) async fn metrics(&self) -> String {
        let url = self.ready["metrics"].as_str().unwrap();
        let address = url
            .strip_prefix("http://")
            .and_then(|url| url.strip_suffix("/metrics"));
        let mut stream = TcpStream::connect(address.unwrap()).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    /// Asks the node to end and asserts that it does so well.
    pub(crate) async fn end(self, how: Signal) {
        signal(self.running.pid(), how);
        let done = self.running.done().await;
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(
            done.out.ends_with("{\"event\":\"stopped\"}\n"),
            "{}",
            done.out
        );
    }
}

pub(crate) fn keys(first: u128, count: u128) -> Vec<BlockKey> {
    (first..first + count).map(BlockKey::from_u128).collect()
}

/// Stores blocks of zeros.
pub(crate) async fn store(engine: &EngineClient, keys: &[BlockKey]) {
    let grant = engine.store(keys, 0).await.unwrap();
    let zeros = [0; BLOCK_BYTES];
    let mut filled = Vec::new();
    for (index, slot) in grant.slots.iter().enumerate() {
        slot.as_ref().unwrap().write(0, &zeros);
        let checksum = Checksum::of(&zeros);
        filled.push(Filled { index, checksum });
    }
    engine.commit(grant.ticket, &filled).await.unwrap();
    engine.release(grant.ticket).await.unwrap();
}

/// How many leading blocks of `keys` the engine can load, and how many of them from peers.
pub(crate) async fn load(engine: &EngineClient, keys: &[BlockKey]) -> (usize, usize) {
    let hit = engine.match_prefix(keys).await.unwrap();
    let mut loaded = (0, 0);
    if hit.blocks > 0 {
        engine
            .load(hit.ticket, hit.blocks, Duration::from_secs(10).into())
            .await
            .unwrap();
        let blocks = engine.wait(hit.ticket).await.unwrap();
        loaded = (blocks.blocks.len(), blocks.remote);
    }
    engine.release(hit.ticket).await.unwrap();
    loaded
}

/// Waits until these gauges of the node named `b` have these values.
async fn assert_gauges(node: &NodeProcess, values: [(&str, usize); 3]) {
    for (gauge, value) in values {
        let line = format!("flexkv_{gauge}{{node=\"b\"}} {value}\n");
        until(&line, async || node.metrics().await.contains(&line)).await;
    }
}

/// Waits until so many slots of the node named `b` are being filled, and hold a block.
async fn assert_slots(node: &NodeProcess, filling: usize, blocks: usize) {
    for (used_for, count) in [("filling", filling), ("block", blocks)] {
        let line = format!("flexkv_slots{{node=\"b\",use=\"{used_for}\"}} {count}\n");
        until(&line, async || node.metrics().await.contains(&line)).await;
    }
}

#[tokio::test]
async fn nodes_find_each_other_and_share_and_count_it() {
    let home = Home::new();
    let redis = LocalRedis::start_with_password("sesame").await.unwrap();
    let url = format!("redis.url = 'redis://127.0.0.1:{}'", redis.port());
    home.write("password", "sesame\n");
    let more = format!(
        "{url}\nredis.password_file = '{}'",
        home.path("password").display()
    );
    let (a, b) = (
        NodeProcess::start(&home, "a", &more),
        NodeProcess::start(&home, "b", &more),
    );
    a.sees(1);
    b.sees(1);
    let (at_a, at_b) = (a.attach().await, b.attach().await);
    let keys = keys(1, 8);
    store(&at_a, &keys).await;
    until("b loads a's blocks", async || {
        load(&at_b, &keys).await == (8, 8)
    })
    .await;
    assert_eq!(load(&at_b, &keys).await, (8, 0), "b has them itself by now");

    let metrics = b.metrics().await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
    for line in [
        "flexkv_hit_blocks_total{node=\"b\",source=\"remote\"} 8",
        "flexkv_hit_blocks_total{node=\"b\",source=\"local\"} 8",
        "flexkv_peers{node=\"b\"} 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in:\n{metrics}"
        );
    }
    let granted = at_b.store(&self::keys(100, 3), 0).await.unwrap();
    let held = at_b.match_prefix(&keys).await.unwrap();
    at_b.load(held.ticket, 8, Duration::from_secs(10).into())
        .await
        .unwrap();
    at_b.wait(held.ticket).await.unwrap();
    assert_gauges(&b, [("sessions", 1), ("tickets", 2), ("pinned_slots", 8)]).await;
    assert_slots(&b, 3, 8).await;
    drop((at_a, at_b, granted));
    assert_gauges(&b, [("sessions", 0), ("tickets", 0), ("pinned_slots", 0)]).await;
    assert_slots(&b, 0, 8).await;
    a.end(Signal::TERM).await;
    b.sees(0);
    b.end(Signal::INT).await;
    for name in ["a", "b"] {
        let socket = home.path(&format!("{name}-engines/node.sock"));
        assert!(!socket.exists(), "{} is left behind", socket.display());
    }
}

#[tokio::test]
async fn remote_hits_resume_after_redis_came_back_empty() {
    let home = Home::new();
    let mut redis = LocalRedis::start().await.unwrap();
    let more = format!("redis.url = '{}'", redis.url());
    let (a, b) = (
        NodeProcess::start(&home, "a", &more),
        NodeProcess::start(&home, "b", &more),
    );
    b.sees(1);
    let (at_a, at_b) = (a.attach().await, b.attach().await);
    redis.kill();
    let unseen = keys(100, 4);
    store(&at_a, &unseen).await;
    redis.restart().await.unwrap();
    let after = keys(200, 4);
    store(&at_a, &after).await;
    for keys in [&unseen, &after] {
        until("b loads what a stored", async || {
            load(&at_b, keys).await.0 == 4
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_starts_without_redis_and_joins_when_it_comes() {
    let home = Home::new();
    let mut redis = LocalRedis::start().await.unwrap();
    redis.kill();
    let more = format!("redis.url = '{}'", redis.url());
    let (a, b) = (
        NodeProcess::start(&home, "a", &more),
        NodeProcess::start(&home, "b", &more),
    );
    a.running.error_line("is not there");
    let at_a = a.attach().await;
    let alone = keys(1, 2);
    store(&at_a, &alone).await;
    assert_eq!(
        load(&at_a, &alone).await,
        (2, 0),
        "a node without Redis serves its engines"
    );
    redis.restart().await.unwrap();
    b.sees(1);
    let at_b = b.attach().await;
    until("b loads a's blocks", async || {
        load(&at_b, &alone).await.0 == 2
    })
    .await;
}

#[tokio::test]
async fn a_node_that_redis_refuses_does_not_start() {
    let home = Home::new();
    let redis = LocalRedis::start_with_password("sesame").await.unwrap();
    configure(
        &home,
        "a",
        &format!("redis.url = 'redis://:wrong@127.0.0.1:{}'", redis.port()),
    );
    let done = home.run("node --config a.toml");
    done.assert_failed(1, &["cannot use Redis at 127.0.0.1:", "refuses us"]);
    assert!(
        !done.err.contains("wrong@"),
        "the password is shown: {}",
        done.err
    );
}

#[tokio::test]
async fn a_node_ends_with_its_parent_if_told_so() {
    let home = Home::new();
    configure(&home, "a", "");
    let args = "node --json --until-stdin-closes --config a.toml";
    let mut running = Running::start(home.command(args).stdin(Stdio::piped()));
    assert!(running.line().contains("ready"));
    drop(running.child.stdin.take());
    assert_eq!(running.done().await.code, Some(0));
}

#[test]
fn configurations_are_checked_as_a_whole() {
    let home = Home::new();
    configure(&home, "good", "");
    let done = home.run("node --config good.toml --check");
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "good.toml is valid\n")
    );
    configure(&home, "bad", "redis_ur = 'redis://h'\nlocality = 7");
    home.run("node --config bad.toml").assert_failed(
        1,
        &[
            "bad.toml: `redis_ur` unknown key, did you mean `redis.url`?",
            "bad.toml: `locality` must be text in quotes, not a number",
        ],
    );
    home.run("node --config none.toml")
        .assert_failed(1, &["cannot read the configuration none.toml"]);
    let example = home.run("node --example-config");
    assert_eq!(example.code, Some(0));
    home.write("secret", "s");
    let secret = home.path("secret");
    let text = example
        .out
        .replace("/etc/flexkv/secret", &secret.display().to_string());
    home.write("example.toml", &text);
    let done = home.run("node --config example.toml --check");
    assert_eq!(done.code, Some(0), "{}", done.err);
}

#[tokio::test]
async fn an_address_or_socket_in_use_is_named() {
    let home = Home::new();
    let a = NodeProcess::start(&home, "a", "");
    let done = home.run("node --config a.toml");
    done.assert_failed(1, &["cannot serve engines", "another node listens on"]);
    let endpoint = a.ready["endpoint"].as_str().unwrap();
    let address = endpoint.strip_prefix("tcp://").unwrap();
    let config = configure(&home, "b", "");
    let text = std::fs::read_to_string(&config).unwrap();
    let taken = format!("network.listen = '{address}'");
    home.write(
        "b.toml",
        &text.replace("network.listen = '127.0.0.1:0'", &taken),
    );
    home.run("node --config b.toml")
        .assert_failed(1, &[&format!("cannot listen for peers at {address}")]);
    a.end(Signal::TERM).await;
}
