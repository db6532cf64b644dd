//! Node processes with an SSD: what memory has no room for, what a kill leaves, what peers get.

use flexkv_block::BlockKey;
use flexkv_engine::EngineClient;
use flexkv_redis::local::LocalRedis;
use rustix::process::Signal;

use crate::harness::{Home, signal, until};
use crate::node::{NodeProcess, configure, keys, load, store};

/// Prompts of 40 blocks each; memory holds 64 blocks.
fn prompts(count: u128) -> Vec<Vec<BlockKey>> {
    (0..count).map(|n| keys(1000 * (n + 1), 40)).collect()
}

fn ssd(home: &Home, name: &str) -> String {
    let dir = home.path(&format!("{name}-ssd"));
    format!(
        "ssd.directories = ['{}']\nssd.sizes = '16 MiB'",
        dir.display()
    )
}

/// The value of a metric of node `name`.
async fn metric(node: &NodeProcess, line: &str) -> u64 {
    let metrics = node.metrics().await;
    let found = metrics.lines().find_map(|it| it.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

/// Stores the prompts, each once the one before is on SSD.
async fn fill(node: &NodeProcess, name: &str, engine: &EngineClient, prompts: &[Vec<BlockKey>]) {
    let written = format!("flexkv_ssd_written_blocks_total{{node=\"{name}\"}}");
    let mut count = metric(node, &written).await;
    for prompt in prompts {
        store(engine, prompt).await;
        count += prompt.len() as u64;
        until("written to SSD", async || {
            metric(node, &written).await == count
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_finds_after_kill_9_what_it_had_on_ssd() {
    let home = Home::new();
    let prompts = prompts(5);
    let node = NodeProcess::start(&home, "a", &ssd(&home, "a"));
    let engine = node.attach().await;
    fill(&node, "a", &engine, &prompts).await;
    for prompt in &prompts {
        assert_eq!(
            load(&engine, prompt).await,
            (40, 0),
            "three times its memory"
        );
    }
    let line = "flexkv_hit_blocks_total{node=\"a\",source=\"ssd\"}";
    assert!(metric(&node, line).await >= 40 * 4);
    drop(engine);
    signal(node.running.pid(), Signal::KILL);
    drop(node);

    let node = NodeProcess::start(&home, "a", &ssd(&home, "a"));
    let engine = node.attach().await;
    let line = "flexkv_ssd_recovered_blocks_total{node=\"a\"}";
    assert_eq!(metric(&node, line).await, 200);
    for prompt in &prompts {
        assert_eq!(load(&engine, prompt).await, (40, 0));
    }
    drop(engine);
    node.end(Signal::TERM).await;
}

#[tokio::test]
async fn peers_get_what_only_an_ssd_holds_also_after_its_node_was_killed() {
    let home = Home::new();
    let redis = LocalRedis::start().await.unwrap();
    let url = format!("redis.url = '{}'", redis.url());
    let with_ssd = format!("{url}\n{}", ssd(&home, "a"));
    let prompts = prompts(5);
    let a = NodeProcess::start(&home, "a", &with_ssd);
    let b = NodeProcess::start(&home, "b", &url);
    b.sees(1);
    let (at_a, at_b) = (a.attach().await, b.attach().await);
    fill(&a, "a", &at_a, &prompts).await;
    until("b loads what only a's SSD holds", async || {
        load(&at_b, &prompts[0]).await.0 == 40
    })
    .await;
    let read = "flexkv_ssd_read_blocks_total{node=\"a\"}";
    assert_eq!(
        metric(&a, read).await,
        40,
        "the owner brought them to memory"
    );
    let sent = "flexkv_served_blocks_total{node=\"a\"}";
    assert_eq!(metric(&a, sent).await, 0, "copied out of shared memory");
    drop(at_a);
    signal(a.running.pid(), Signal::KILL);
    drop(a);

    let a = NodeProcess::start(&home, "a", &with_ssd);
    until("b loads what the SSD kept", async || {
        load(&at_b, &prompts[3]).await == (40, 40)
    })
    .await;
    drop(at_b);
    a.end(Signal::TERM).await;
    b.end(Signal::TERM).await;
}

#[test]
fn an_ssd_that_cannot_be_used_is_named() {
    let home = Home::new();
    home.write("file", "");
    let file = home.path("file");
    let under = format!(
        "ssd.directories = '{}/x'\nssd.sizes = '1 GiB'",
        file.display()
    );
    configure(&home, "a", &under);
    let done = home.run("node --config a.toml");
    done.assert_failed(
        1,
        &["cannot use the SSD", "file/x", "cannot make the directory"],
    );
    let small = format!(
        "ssd.directories = '{}'\nssd.sizes = '4 KiB'",
        home.path("s").display()
    );
    configure(&home, "a", &small);
    let done = home.run("node --config a.toml");
    done.assert_failed(1, &["hold no block; one needs 12288"]);
}
