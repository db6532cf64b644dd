//! The global index in memory: hashing, matching, locating, applying, dying, and what it weighs.
//!
//! Content: conversations of 2,048 blocks over shared system prompts, which move from node to node,
//! so that each has several owners. Names of rows speak of the default size; "10 M" is ten times that.

use std::hint::black_box;

use dashmap::DashMap;
use fastrand::Rng;
use flexkv_block::{BlockKey, ClusterSecret, KeyChain, TokenId};
use flexkv_index::PrefixMatch;
use tokio::time::Instant;

use super::{Better, Row, time};
use crate::report::Times;
use content::{Content, Filled, PIECES, PROMPT_BLOCKS, PerBlock, find, key, renew};

mod beside;
mod content;

/// Owners, unless a row says something else.
const OWNERS: usize = 16;
/// Repetitions of what takes microseconds.
const TIMES: usize = 20_000;

/// Whom the peer values are of: measured on the same kind of machine, medians of the ranges.
const ORIGINAL: &str = "FlexKV (original)";

/// Block replicas in the index by default.
pub const DEFAULT_REPLICAS: usize = 1_000_000;

/// Measures the index with about `replicas` block replicas, and with ten times as many.
pub fn run(replicas: usize) -> Vec<Row> {
    let mut rng = Rng::with_seed(1);
    let mut rows = hashing(&mut rng);
    rows.extend(usual(replicas, &mut rng));
    rows.extend(large(10 * replicas, &mut rng));
    rows.extend(pieces(10 * replicas, &mut rng));
    rows.extend(many_owners(replicas, &mut rng));
    rows.extend(unshared(replicas, &mut rng));
    rows
}

fn lower(name: impl Into<String>, value: f64, unit: &'static str) -> Row {
    Row::new(name, value, unit, Better::Lower)
}

/// Keys as an engine has them: just computed, so they lie in its cache.
fn warm(keys: &[BlockKey]) -> &[BlockKey] {
    black_box(keys.iter().fold(0, |sum, key| sum ^ key.as_u128()));
    keys
}

fn hashing(rng: &mut Rng) -> Vec<Row> {
    let secret = ClusterSecret::derive(b"bench");
    let tokens: Vec<TokenId> = (0..32_768).map(|_| rng.u32(..)).collect();
    let root = key(rng);
    let mut rows = Vec::new();
    for (per_block, target) in [(16, Some(30.0)), (128, None), (512, None)] {
        let times = time(
            2_000,
            |_| (),
            |()| {
                black_box(KeyChain::keys(&secret, root, per_block, black_box(&tokens)));
            },
        );
        let name = format!("keys of a 32768-token prompt, {per_block} tokens a block, p50");
        let mut row = lower(name, times.micros(0.5), "us");
        row.target = target;
        rows.push(if per_block == 16 {
            row.peer(ORIGINAL, 97.0)
        } else {
            row
        });
    }
    let mut chain = KeyChain::new(&secret, root, 16);
    let mut keys = Vec::new();
    let times = time(
        TIMES,
        |_| (),
        |()| {
            keys.clear();
            for tokens in black_box(&tokens[..1600]).chunks_exact(16) {
                chain.extend(tokens, &mut keys);
            }
            black_box(&keys);
        },
    );
    rows.push(lower(
        "key of one more block, 16 tokens, p50",
        times.micros(0.5) / 100.0,
        "us",
    ));
    rows
}

/// Times of matches of prompts by turns, each of so many blocks, as the last owner asks: it is the
/// last one that is found among those of a segment.
fn match_times(filled: &Filled, prompts: &[Vec<BlockKey>], blocks: usize) -> Times {
    let own = filled.owners[filled.owners.len() - 1];
    let mut found = PrefixMatch::default();
    let mut right = true;
    let times = time(
        TIMES,
        |i| warm(&prompts[i * 31 % prompts.len()]),
        |keys| {
            find(&filled.reader, own, keys, &mut found);
            right &= found.blocks == blocks;
        },
    );
    assert!(right, "a match is not of {blocks} blocks");
    times
}

/// Median and p99 of matches.
fn match_rows(what: &str, times: &Times) -> [Row; 2] {
    [("p50", 0.5), ("p99", 0.99)].map(|(name, quantile)| {
        let name = format!("match of 2048 blocks, {what}, {name}");
        lower(name, times.micros(quantile), "us")
    })
}

/// At most `count` prompts that leave those of the content after so many blocks.
fn forks(content: &Content, count: usize, blocks: usize, rng: &mut Rng) -> Vec<Vec<BlockKey>> {
    let few = content.prompts.iter().take(count);
    few.map(|keys| {
        let mut keys = keys[..blocks].to_vec();
        keys.resize_with(PROMPT_BLOCKS, || key(rng));
        keys
    })
    .collect()
}

/// Full, half and missed matches; the first row is the median of a full one.
fn matches(what: &str, filled: &Filled, content: &Content, rng: &mut Rng) -> Vec<Row> {
    let mut rows = Vec::new();
    let times = match_times(filled, &content.prompts, PROMPT_BLOCKS);
    rows.extend(match_rows(&format!("{what}, full hit"), &times));
    let half = forks(content, 2_000, PROMPT_BLOCKS / 2, rng);
    let times = match_times(filled, &half, PROMPT_BLOCKS / 2);
    rows.extend(match_rows(&format!("{what}, half"), &times));
    // Few, so that it is not their own keys that take the caches.
    let times = match_times(filled, &forks(content, 64, 0, rng), 0);
    let [mut median, late] = match_rows(&format!("{what}, miss"), &times);
    median.target = Some(0.3);
    rows.extend([median.peer(ORIGINAL, 0.45), late]);
    rows
}

/// What a concurrent map from key to owners takes, probed block by block; and how many times as long
/// that is.
fn naive(what: &str, content: &Content, full: f64) -> [Row; 2] {
    let map: DashMap<BlockKey, u64> = DashMap::new();
    for (number, keys) in content.prompts.iter().enumerate() {
        for key in keys {
            *map.entry(*key).or_default() |= 1 << (number % OWNERS);
        }
    }
    let prompts = &content.prompts;
    let times = time(
        TIMES / 10,
        |i| warm(&prompts[i * 31 % prompts.len()]),
        |keys| {
            let blocks = keys.iter().take_while(|key| map.contains_key(*key)).count();
            assert_eq!(black_box(blocks), PROMPT_BLOCKS);
        },
    );
    let naive = times.micros(0.5);
    let name = format!("baseline: one DashMap probe per block, {what}, full hit, p50");
    let ratio = format!("match against the baseline, {what}, full hit");
    [
        lower(name, naive, "us"),
        Row::new(ratio, naive / full, "x", Better::Higher).target(50.0),
    ]
}

/// The rows of an index of the size asked for.
fn usual(replicas: usize, rng: &mut Rng) -> Vec<Row> {
    let content = Content::moved(replicas, 2, OWNERS, rng);
    let (mut filled, applied) = Filled::new(&content);
    let mut rows = matches("1 M replicas", &filled, &content, rng);
    for row in &mut rows[..4] {
        row.peer = Some(ORIGINAL);
        row.peer_value = Some(23.0);
    }
    rows[0].target = Some(2.0);
    let full = rows[0].value;
    rows.extend(naive("1 M replicas", &content, full));
    rows.push(locating(&filled, &content));
    let [mut median, mean] = apply_rows("first fill", &applied);
    median.target = Some(0.15);
    rows.extend([median.peer(ORIGINAL, 15.0), mean]);
    let name = "memory per block replica, 1.5 owners a block";
    rows.push(lower(name, filled.bytes_per_replica(), "B").target(20.0));
    rows.extend(beside::rows(&mut filled, &content));
    rows.extend(renewing(&mut filled, &content));
    rows.extend(dying(&mut filled));
    rows
}

fn locating(filled: &Filled, content: &Content) -> Row {
    let mut found = PrefixMatch::default();
    let mut places = Vec::with_capacity(PROMPT_BLOCKS);
    let prompts = &content.prompts;
    let times = time(
        TIMES,
        |i| {
            let keys = warm(&prompts[i * 31 % prompts.len()]);
            find(&filled.reader, filled.owners[0], keys, &mut found);
            (keys, found.runs.clone())
        },
        |(keys, runs)| {
            places.clear();
            for run in runs {
                let keys = &keys[run.start..run.start + run.len];
                filled.reader.locate(keys, run, &mut places);
            }
            black_box(&places);
        },
    );
    let name = "locations of 2048 matched blocks, p50";
    lower(name, times.micros(0.5), "us").target(5.0)
}

/// What applying deltas costs: the median of small steps, and all of it.
fn apply_rows(what: &str, applied: &PerBlock) -> [Row; 2] {
    let name = |value| format!("apply, {what}, per block, {value}");
    [
        lower(name("p50 of steps"), applied.median(), "us"),
        lower(name("mean"), applied.mean(), "us"),
    ]
}

/// Every conversation goes and comes back: what that costs, and what it leaves.
fn renewing(filled: &mut Filled, content: &Content) -> [Row; 3] {
    let mut applied = PerBlock::default();
    for runs in &content.runs {
        let began = Instant::now();
        let blocks = renew(&mut filled.writer, &filled.owners, runs);
        applied.add(began.elapsed(), blocks);
    }
    let [mut median, mean] = apply_rows("all removed and added again", &applied);
    median.target = Some(0.15);
    let name = "memory per block replica, after all was removed and added again";
    let bytes = lower(name, filled.bytes_per_replica(), "B").target(20.0);
    [median, mean, bytes]
}

/// Half of the owners die.
fn dying(filled: &mut Filled) -> [Row; 2] {
    let before = filled.reader.stats().replicas;
    let dead = filled.owners.split_off(filled.owners.len() / 2);
    let (writer, mut owners) = (&mut filled.writer, dead.iter());
    let times = time(
        dead.len() - dead.len() / 10,
        |_| owners.next(),
        |owner| {
            if let Some(owner) = owner {
                writer.remove_owner(*owner);
            }
        },
    );
    let began = Instant::now();
    while !filled.writer.sweep(1024) {}
    let took = began.elapsed().as_secs_f64() * 1e9;
    let swept = before - filled.reader.stats().replicas;
    [
        lower(
            "an owner's death, until its blocks are invisible, p50",
            times.micros(0.5),
            "us",
        )
        .target(1.0),
        lower(
            "sweeping dead owners, per replica",
            took / swept.max(1) as f64,
            "ns",
        ),
    ]
}

/// Ten times as many replicas, and conversations that moved twice.
fn large(replicas: usize, rng: &mut Rng) -> Vec<Row> {
    let content = Content::moved(replicas, 3, OWNERS, rng);
    let (filled, applied) = Filled::new(&content);
    let mut rows = matches("10 M replicas", &filled, &content, rng);
    rows[0].target = Some(4.0);
    let full = rows[0].value;
    rows.extend(naive("10 M replicas", &content, full));
    let [mut median, mean] = apply_rows("first fill, 10 M replicas", &applied);
    median.target = Some(0.15);
    rows.extend([median, mean]);
    let name = "memory per block replica, 10 M replicas, 2 owners a block";
    rows.push(lower(name, filled.bytes_per_replica(), "B").target(20.0));
    rows
}

/// Prompts of which every owner holds pieces only.
fn pieces(replicas: usize, rng: &mut Rng) -> Vec<Row> {
    let content = Content::pieces(replicas, OWNERS, rng);
    let (filled, _) = Filled::new(&content);
    let mut found = PrefixMatch::default();
    find(
        &filled.reader,
        filled.owners[0],
        &content.prompts[0],
        &mut found,
    );
    assert!(
        found.runs.len() >= PIECES,
        "{} owner runs",
        found.runs.len()
    );
    let times = match_times(&filled, &content.prompts, PROMPT_BLOCKS);
    let [mut median, late] = match_rows("10 M replicas in pieces, 10 owner runs or more", &times);
    median.target = Some(8.0);
    vec![median, late]
}

/// Prompts whose system prompts all owners hold, for more and more owners.
fn many_owners(replicas: usize, rng: &mut Rng) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut medians = Vec::new();
    for owners in [16, 64, 256, 1000] {
        let content = Content::known_to_all(replicas, owners, rng);
        let (filled, _) = Filled::new(&content);
        let times = match_times(&filled, &content.prompts, PROMPT_BLOCKS);
        let what =
            format!("1 M replicas, {owners} owners who all hold the system prompts, full hit");
        rows.extend(match_rows(&what, &times));
        medians.push(times.micros(0.5));
    }
    let steps = medians.windows(2).map(|pair| pair[1] / pair[0]);
    let worst = steps.fold(0.0, f64::max);
    rows.push(lower("match with four times the owners, worst step", worst, "x").target(3.0));
    rows
}

/// Memory where no block has a second owner.
fn unshared(replicas: usize, rng: &mut Rng) -> Vec<Row> {
    [
        ("long prompts", PROMPT_BLOCKS..=PROMPT_BLOCKS, 32),
        ("14 blocks a chat", 14..=14, 5),
        ("5 to 14 blocks a chat", 5..=14, 5),
    ]
    .into_iter()
    .map(|(what, blocks, turn)| {
        let content = Content::alone(replicas, blocks, turn, rng);
        let (filled, _) = Filled::new(&content);
        let name = format!("memory per block replica, 1 owner a block, {what}");
        lower(name, filled.bytes_per_replica(), "B").target(32.0)
    })
    .collect()
}

#[cfg(test)]
mod tests;
