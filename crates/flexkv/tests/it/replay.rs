//! `flexkv replay`: hit rates against an exact model of the caches.

use std::sync::LazyLock;

use flexkv_redis::local::LocalRedis;
use serde_json::Value;

use crate::harness::Home;
use crate::model::Trace;

static TRACE: LazyLock<Trace> = LazyLock::new(|| Trace::generate(600, 1));

/// Blocks that a node of the tests keeps.
const CAPACITY: usize = 400;

fn replay(args: &str) -> Value {
    let home = Home::new();
    home.write("trace.jsonl", &TRACE.text());
    let tokens = CAPACITY * 512;
    let args = format!("replay --trace trace.jsonl --json --node-tokens {tokens} {args}");
    let report = home.run(&args).json();
    home.assert_clean();
    assert_eq!(report["requests"], 600);
    assert_eq!(report["blocks"], TRACE.blocks());
    assert_eq!(report["node_blocks"], CAPACITY);
    assert_eq!(report["corrupt_blocks"], 0);
    assert_eq!(report["dead_nodes"], 0);
    assert_eq!(report["verified_blocks"], report["hit_blocks"]);
    report
}

fn number(report: &Value, field: &str) -> usize {
    report[field].as_u64().unwrap() as usize
}

/// Hits of a cluster: those of the model but for the few blocks that were asked for before they
/// were known.
fn assert_near_model(report: &Value, nodes: usize) {
    let hits = number(report, "hit_blocks");
    let ideal = TRACE.hits(nodes, CAPACITY, true);
    let alone = TRACE.hits(nodes, CAPACITY, false);
    assert!(
        ideal * 10 > alone * 13,
        "the trace shows no difference: {ideal}, {alone}"
    );
    // Several owners of a block spread load, so that which node keeps what differs a little.
    let slack = ideal / 10;
    assert!(
        hits + slack >= ideal && hits <= ideal + slack,
        "{hits} of {ideal}"
    );
    let fetched = number(report, "remote_hit_blocks");
    assert_eq!(hits, fetched + number(report, "local_hit_blocks"));
    assert_eq!(
        number(report, "fetched_bytes"),
        fetched * number(report, "block_bytes")
    );
    assert!(
        4 * fetched > hits,
        "most sharing is between nodes: {fetched} of {hits}"
    );
}

#[test]
fn nodes_alone_hit_what_the_model_says_block_for_block() {
    for nodes in [1, 4] {
        let report = replay(&format!("--alone --nodes {nodes}"));
        assert_eq!(
            number(&report, "hit_blocks"),
            TRACE.hits(nodes, CAPACITY, false)
        );
        assert_eq!(report["remote_hit_blocks"], 0);
    }
}

#[test]
fn a_cluster_in_one_process_hits_what_the_model_says() {
    assert_near_model(&replay("--nodes 4"), 4);
}

#[tokio::test]
async fn a_cluster_of_processes_on_redis_hits_what_the_model_says() {
    let redis = LocalRedis::start().await.unwrap();
    let report = replay(&format!("--nodes 4 --processes --redis {}", redis.url()));
    assert_near_model(&report, 4);
    let rate = report["hit_rate"].as_f64().unwrap();
    let expect = number(&report, "hit_blocks") as f64 / TRACE.blocks() as f64;
    assert!((rate - expect).abs() < 1e-9);
    assert!(report["lookup_us_p99"].as_f64() >= report["lookup_us_p50"].as_f64());
}

#[test]
fn processes_alone_need_no_redis() {
    let report = replay("--nodes 2 --processes --alone");
    assert_eq!(
        number(&report, "hit_blocks"),
        TRACE.hits(2, CAPACITY, false)
    );
}

#[test]
fn smaller_and_larger_blocks_cut_the_same_prompts() {
    let home = Home::new();
    home.write("trace.jsonl", &Trace::generate(50, 2).text());
    let args = "replay --trace trace.jsonl --json --alone --nodes 1";
    let blocks = |more: &str| number(&home.run(&format!("{args} {more}")).json(), "blocks");
    let usual = blocks("");
    assert_eq!(blocks("--block-tokens 64"), 8 * usual);
    let doubled = blocks("--block-tokens 1024");
    assert!(
        doubled < usual / 2 && doubled > usual / 2 - 50,
        "{doubled} of {usual}"
    );
    assert!(blocks("--limit 10") < usual);
}

/// Plays a trace on nodes that keep so many blocks in memory and on SSD.
fn replay_blocks(trace: &Trace, memory: usize, ssd: usize, args: &str) -> Value {
    let home = Home::new();
    home.write("trace.jsonl", &trace.text());
    let (memory, ssd) = (memory * 512, ssd * 512);
    let ssd = if ssd > 0 {
        let dir = home.path("tmp").display().to_string();
        format!("--ssd-tokens {ssd} --ssd-dir {dir}")
    } else {
        String::new()
    };
    let args = format!("replay --trace trace.jsonl --json --node-tokens {memory} {ssd} {args}");
    let report = home.run(&args).json();
    home.assert_clean();
    assert_eq!(report["corrupt_blocks"], 0);
    assert_eq!(report["verified_blocks"], report["hit_blocks"]);
    report
}

#[test]
fn memory_and_ssd_are_within_a_point_of_an_ideal_cache_of_two_levels() {
    let trace = Trace::conversations(1500, 1);
    let (nodes, memory, ssd) = (4, 195, 8 * 195);
    let report = replay_blocks(&trace, memory, ssd, "--nodes 4");
    let share = |hits: usize| hits as f64 / trace.blocks() as f64;
    let rate = report["hit_rate"].as_f64().unwrap();
    let ideal = share(trace.two_level_hits(nodes * memory, nodes * ssd));
    let alone = share(trace.two_level_hits(nodes * memory, 0));
    let endless = share(trace.blocks() - trace.distinct());
    assert!(
        alone + 0.05 < ideal && ideal + 0.001 < endless,
        "the trace shows no difference: {alone}, {ideal}, {endless}"
    );
    assert!(rate + 0.01 >= ideal, "{rate} of {ideal}");
    let told = report["ideal_hit_rate"].as_f64().unwrap();
    assert!((told - ideal).abs() < 1e-9, "{told} is not {ideal}");
    assert!(number(&report, "ssd_read_blocks") > 0);
    let written = number(&report, "ssd_written_blocks");
    assert!(
        written <= number(&report, "stored_blocks"),
        "nothing is written twice"
    );
}

#[test]
fn every_policy_plays_a_trace() {
    let hits = |policy: &str| {
        let report = replay_blocks(&TRACE, 200, 0, &format!("--nodes 1 --alone {policy}"));
        number(&report, "hit_blocks")
    };
    let usual = hits("");
    assert_eq!(hits("--policy lru"), usual);
    let others: Vec<usize> = ["half-age", "lfu", "slru", "fifo", "s3-fifo"]
        .iter()
        .map(|policy| hits(&format!("--policy {policy}")))
        .collect();
    assert!(others.iter().all(|hits| *hits > usual / 4), "{others:?}");
    let different = others.iter().filter(|hits| **hits != usual);
    assert!(different.count() >= 3, "{others:?} beside {usual}");
    let home = Home::new();
    home.write("trace.jsonl", &TRACE.text());
    let refused = home.run("replay --trace trace.jsonl --policy mru");
    refused.assert_failed(2, &["`mru` is no eviction policy", "`s3-fifo`"]);
}

/// Blocks of some requests of a replay, and of those the ones that hit.
fn after_restart(report: &Value) -> (u64, u64) {
    let seconds = report["restart"]["by_second"].as_array().unwrap();
    let sum = |field: &str| seconds.iter().map(|it| it[field].as_u64().unwrap()).sum();
    (sum("blocks"), sum("hit_blocks"))
}

#[tokio::test]
async fn hits_go_on_after_all_nodes_were_killed_and_started_again() {
    let redis = LocalRedis::start().await.unwrap();
    let trace = Trace::conversations(900, 2);
    let half = 450;
    // SSDs are full at the restart: what goes next is decided by what the nodes know of its use.
    let ssd = 500;
    let play = |ssd: usize, restart: &str| {
        let url = redis.url();
        let args = format!("--nodes 3 --processes --redis {url} {restart}");
        replay_blocks(&trace, 100, ssd, &args)
    };
    let restart = format!("--restart-after {half}");
    let undisturbed = play(ssd, "");
    let (warm, cold) = (play(ssd, &restart), play(0, &restart));
    let recovered = warm["restart"]["recovered_blocks"].as_u64().unwrap();
    assert!(recovered > 1400, "{recovered} of 1500 slots were full");
    assert!(warm["restart"]["attached_after"].as_f64().unwrap() > 0.0);
    assert_eq!(warm["dead_nodes"], 0);
    assert!(undisturbed["restart"].is_null());
    // Judged by all that is played afterwards, however long that takes.
    let later: usize = trace.requests[half..].iter().map(Vec::len).sum();
    let (played, hits) = after_restart(&warm);
    assert_eq!(played, later as u64);
    let tenths = undisturbed["hit_rate_by_tenth"].as_array().unwrap();
    let tenths = tenths.iter().map(|rate| rate.as_f64().unwrap());
    let blocks = trace.requests.chunks(half / 5);
    let blocks = blocks.map(|part| part.iter().map(Vec::len).sum::<usize>() as f64);
    let expected: f64 = tenths.zip(blocks).skip(5).map(|(rate, of)| rate * of).sum();
    // Until the nodes have found each other again, which takes some of the requests of so small a
    // trace, they do not share.
    assert!(hits as f64 > 0.8 * expected, "{hits} of {expected}");
    let (_, without_ssd) = after_restart(&cold);
    assert!(
        (without_ssd as f64) < 0.7 * expected,
        "the trace shows no difference: {without_ssd} of {expected}"
    );
}
