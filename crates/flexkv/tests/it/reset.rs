//! `flexkv reset`: everything is dropped, and engines that read meanwhile only miss.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_engine::EngineClient;
use flexkv_ports::{Filled, KvCache as _, Loaded};
use flexkv_redis::local::LocalRedis;

use crate::harness::{Home, until};
use crate::node::{NodeProcess, keys};

/// The bytes of block `key`.
fn content(key: BlockKey) -> [u8; 4096] {
    [key.fingerprint() as u8; 4096]
}

/// Stores blocks with bytes of their own.
async fn store(engine: &EngineClient, keys: &[BlockKey]) {
    let grant = engine.store(keys, 0).await.unwrap();
    let mut filled = Vec::new();
    for (index, slot) in grant.slots.iter().enumerate() {
        let bytes = content(keys[index]);
        slot.as_ref().unwrap().write(0, &bytes);
        let checksum = Checksum::of(&bytes);
        filled.push(Filled { index, checksum });
    }
    engine.commit(grant.ticket, &filled).await.unwrap();
    engine.release(grant.ticket).await.unwrap();
}

/// Asserts that what was loaded is what was stored.
fn assert_right(loaded: &Loaded, keys: &[BlockKey]) {
    for (block, key) in loaded.blocks.iter().zip(keys) {
        assert_eq!(block.key, *key);
        assert_eq!(
            block.bytes.checksum(),
            Checksum::of(&content(*key)),
            "{key}"
        );
    }
}

/// How many leading blocks of `keys` the engine can load, and how many of them from peers; their
/// bytes are right.
async fn load(engine: &EngineClient, keys: &[BlockKey]) -> (usize, usize) {
    let hit = engine.match_prefix(keys).await.unwrap();
    let mut loaded = Loaded::default();
    if hit.blocks > 0 {
        let within = Duration::from_secs(10);
        engine
            .load(hit.ticket, hit.blocks, within.into())
            .await
            .unwrap();
        loaded = engine.wait(hit.ticket).await.unwrap();
        assert_right(&loaded, keys);
    }
    engine.release(hit.ticket).await.unwrap();
    (loaded.blocks.len(), loaded.remote)
}

struct Three {
    home: Home,
    nodes: Vec<NodeProcess>,
    _redis: LocalRedis,
}

impl Three {
    async fn new() -> Self {
        let home = Home::new();
        let redis = LocalRedis::start().await.unwrap();
        let more = format!("redis.url = '{}'", redis.url());
        let names = ["a", "b", "c"];
        let nodes = names.map(|name| NodeProcess::start(&home, name, &more));
        nodes.iter().for_each(|node| node.sees(2));
        Self {
            home,
            nodes: nodes.into(),
            _redis: redis,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_dropped_while_others_read() {
    let three = Three::new().await;
    let [at_a, at_b, at_c] = [
        three.nodes[0].attach().await,
        three.nodes[1].attach().await,
        three.nodes[2].attach().await,
    ];
    let old = keys(1, 32);
    store(&at_a, &old).await;
    for at in [&at_b, &at_c] {
        until("all have all blocks", async || load(at, &old).await.0 == 32).await;
    }
    // Pinned throughout: what an engine reads stays what it is.
    let hit = at_c.match_prefix(&old).await.unwrap();
    at_c.load(hit.ticket, 32, Duration::from_secs(10).into())
        .await
        .unwrap();
    let held = at_c.wait(hit.ticket).await.unwrap();

    let reader = {
        let (at_b, old) = (three.nodes[1].attach().await, old.clone());
        tokio::spawn(async move {
            loop {
                let (blocks, _) = load(&at_b, &old).await;
                if blocks == 0 {
                    return;
                }
            }
        })
    };
    let done = three.home.run("reset --config a.toml --json").json();
    let names: Vec<_> = done["done"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 3, "{done}");
    assert_eq!(done["silent"], serde_json::json!([]));
    for at in [&at_a, &at_b, &at_c] {
        assert_eq!(load(at, &old).await, (0, 0));
    }
    reader.await.unwrap();
    assert_right(&held, &old);
    at_c.release(hit.ticket).await.unwrap();

    // The memory has 64 slots: all must be free again, at c too once nothing is read there.
    let new = keys(1000, 60);
    store(&at_a, &new).await;
    for at in [&at_b, &at_c] {
        until("nodes fetch from each other again", async || {
            load(at, &new).await.0 == 60
        })
        .await;
        assert_eq!(load(at, &old).await, (0, 0), "nothing old comes back");
    }
}

#[tokio::test]
async fn one_node_is_dropped_and_others_keep_theirs() {
    let three = Three::new().await;
    let (at_a, at_b) = (three.nodes[0].attach().await, three.nodes[1].attach().await);
    let (at_first, at_second) = (keys(1, 4), keys(100, 4));
    store(&at_a, &at_first).await;
    store(&at_b, &at_second).await;
    let done = three.home.run("reset --config b.toml --node a");
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(
        done.out.starts_with("dropped all blocks: a."),
        "{}",
        done.out
    );
    assert_eq!(load(&at_a, &at_first).await, (0, 0));
    assert_eq!(load(&at_b, &at_second).await, (4, 0));
    until("b sees that a has nothing", async || {
        load(&at_b, &at_first).await == (0, 0)
    })
    .await;
    until("a fetches from b", async || {
        load(&at_a, &at_second).await == (4, 4)
    })
    .await;
    three
        .home
        .run("reset --config b.toml --node nobody")
        .assert_failed(1, &["no node called `nobody` has dropped its blocks"]);
}

#[test]
fn a_node_that_is_alone_is_restarted_instead() {
    let home = Home::new();
    crate::node::configure(&home, "a", "");
    home.run("reset --config a.toml")
        .assert_failed(1, &["the node is alone", "restart it"]);
}
