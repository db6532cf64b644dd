//! The global index in memory: hashing, matching, locating, applying, and what it weighs.
//!
//! Content: conversations of 2,048 blocks over shared system prompts, each held in full by one
//! owner and in its first half by another, as it is when a conversation moved. Names of rows speak
//! of the default size.

use std::hint::black_box;

use dashmap::DashMap;
use fastrand::Rng;
use flexkv_block::{
    BlockKey, ClusterSecret, Generation, KeyChain, Location, SlotId, Tier, TokenId,
};
use flexkv_index::{
    MatchOptions, OwnerId, OwnerSet, PrefixMatch, Snapshot, SnapshotWriter, snapshot,
};
use tokio::time::Instant;

use super::{Better, Row, time};

/// Blocks of a prompt: 32,768 tokens, 16 a block.
const PROMPT_BLOCKS: usize = 2048;
const BLOCK_TOKENS: usize = 16;
/// Blocks of a system prompt.
const SYSTEM_BLOCKS: usize = 256;
const SYSTEM_PROMPTS: usize = 8;
const OWNERS: usize = 16;
/// Blocks that an owner publishes together.
const RUN_BLOCKS: usize = 32;
/// Block replicas of a conversation: all of it, and its first half again.
const REPLICAS: usize = PROMPT_BLOCKS + PROMPT_BLOCKS / 2;
/// Repetitions of what takes microseconds.
const TIMES: usize = 20_000;

/// Whom the peer values are of: measured on the same kind of machine, medians of the ranges.
const ORIGINAL: &str = "FlexKV (original)";

/// Block replicas in the index by default.
pub const DEFAULT_REPLICAS: usize = 1_000_000;

/// Measures the index with about `replicas` block replicas.
pub fn run(replicas: usize) -> Vec<Row> {
    let mut rng = Rng::with_seed(1);
    let conversations = conversations(replicas.div_ceil(REPLICAS), &mut rng);
    let (filled, apply_us) = Filled::new(&conversations);
    let mut rows = vec![hashing(&mut rng)];
    let full = matching(&mut rows, &filled, &conversations, &mut rng);
    rows.push(locating(&filled, &conversations));
    rows.push(
        Row::new("apply, per block", apply_us, "us", Better::Lower)
            .target(0.15)
            .peer(ORIGINAL, 15.0),
    );
    rows.extend(naive(&conversations, full));
    rows.push(shared_bytes(&filled));
    rows.push(unshared_bytes(replicas, &mut rng));
    rows
}

fn key(rng: &mut Rng) -> BlockKey {
    BlockKey::from_u128(rng.u128(..))
}

/// Prompts over shared system prompts.
fn conversations(count: usize, rng: &mut Rng) -> Vec<Vec<BlockKey>> {
    let systems: Vec<Vec<BlockKey>> = (0..SYSTEM_PROMPTS)
        .map(|_| (0..SYSTEM_BLOCKS).map(|_| key(rng)).collect())
        .collect();
    (0..count)
        .map(|number| {
            let mut keys = systems[number % SYSTEM_PROMPTS].clone();
            keys.resize_with(PROMPT_BLOCKS, || key(rng));
            keys
        })
        .collect()
}

/// An index with all conversations in it.
struct Filled {
    /// Keeps the index as it is: without a writer there would be nobody to own its memory.
    _writer: SnapshotWriter,
    reader: Snapshot,
    own: OwnerId,
}

impl Filled {
    /// Fills an index; tells how long that took per block, in us.
    fn new(conversations: &[Vec<BlockKey>]) -> (Self, f64) {
        let (mut writer, reader) = snapshot();
        let owners: Vec<OwnerId> = (0..OWNERS).map_while(|_| writer.add_owner()).collect();
        let mut slot = 0;
        let mut runs = Vec::new();
        for (number, keys) in conversations.iter().enumerate() {
            let fingerprints: Vec<u64> = keys.iter().map(|key| key.fingerprint()).collect();
            for (owner, blocks) in [(number, PROMPT_BLOCKS / 2), (number * 7 + 1, PROMPT_BLOCKS)] {
                let owner = owners[owner % owners.len()];
                for start in (0..blocks).step_by(RUN_BLOCKS) {
                    let part = fingerprints[start..start + RUN_BLOCKS].to_vec();
                    let parent = start.checked_sub(1).map(|before| fingerprints[before]);
                    let places: Vec<Location> = (0..RUN_BLOCKS).map(|_| place(&mut slot)).collect();
                    runs.push((owner, parent, part, places));
                }
            }
        }
        let began = Instant::now();
        for (owner, parent, fingerprints, places) in &runs {
            writer.add_run(*owner, *parent, fingerprints, places);
        }
        let took = began.elapsed().as_secs_f64() * 1e6;
        owners
            .iter()
            .for_each(|owner| writer.set_live(*owner, true));
        let filled = Self {
            _writer: writer,
            reader,
            own: owners[0],
        };
        (filled, took / (runs.len() * RUN_BLOCKS).max(1) as f64)
    }

    fn find(&self, keys: &[BlockKey], found: &mut PrefixMatch) {
        let options = MatchOptions {
            prefer: Some(self.own),
            exclude: &OwnerSet::default(),
        };
        self.reader.match_prefix(keys, &options, found);
    }
}

fn place(slot: &mut u32) -> Location {
    *slot += 1;
    Location {
        tier: Tier::Host,
        slot: SlotId(*slot),
        generation: Generation::FIRST,
    }
}

fn hashing(rng: &mut Rng) -> Row {
    let secret = ClusterSecret::derive(b"bench");
    let tokens: Vec<TokenId> = (0..PROMPT_BLOCKS * BLOCK_TOKENS)
        .map(|_| rng.u32(..))
        .collect();
    let root = key(rng);
    let times = time(
        2_000,
        |_| (),
        |()| {
            black_box(KeyChain::keys(
                &secret,
                root,
                BLOCK_TOKENS,
                black_box(&tokens),
            ));
        },
    );
    Row::new(
        "keys of a 32768-token prompt, 16 tokens a block, p50",
        times.micros(0.5),
        "us",
        Better::Lower,
    )
    .target(30.0)
    .peer(ORIGINAL, 97.0)
}

/// Keys as an engine has them: just computed, so they lie in its cache.
fn warm(keys: &[BlockKey]) -> &[BlockKey] {
    black_box(keys.iter().fold(0, |sum, key| sum ^ key.as_u128()));
    keys
}

/// Adds the rows of a match; returns the median of a full hit.
fn matching(
    rows: &mut Vec<Row>,
    filled: &Filled,
    conversations: &[Vec<BlockKey>],
    rng: &mut Rng,
) -> f64 {
    let fork = |keys: &Vec<BlockKey>, rng: &mut Rng| {
        let mut keys = keys[..PROMPT_BLOCKS / 2].to_vec();
        keys.resize_with(PROMPT_BLOCKS, || key(rng));
        keys
    };
    let half: Vec<Vec<BlockKey>> = conversations.iter().map(|keys| fork(keys, rng)).collect();
    let miss: Vec<Vec<BlockKey>> = (0..64)
        .map(|_| (0..PROMPT_BLOCKS).map(|_| key(rng)).collect())
        .collect();
    let mut full = 0.0;
    for (what, prompts, blocks, target, peer) in [
        ("full hit", conversations, PROMPT_BLOCKS, Some(2.0), 23.0),
        ("half", &half, PROMPT_BLOCKS / 2, Some(2.0), 23.0),
        ("miss", &miss, 0, Some(0.3), 0.45),
    ] {
        let mut found = PrefixMatch::default();
        let mut right = true;
        let times = time(
            TIMES,
            |i| warm(&prompts[i * 31 % prompts.len()]),
            |keys| {
                filled.find(keys, &mut found);
                right &= found.blocks == blocks;
            },
        );
        assert!(right, "{what}: a match is not of {blocks} blocks");
        let name = |quantile| format!("match of 2048 blocks, 1 M replicas, {what}, {quantile}");
        let mut median = Row::new(name("p50"), times.micros(0.5), "us", Better::Lower);
        median.target = target;
        rows.push(median.peer(ORIGINAL, peer));
        rows.push(Row::new(
            name("p99"),
            times.micros(0.99),
            "us",
            Better::Lower,
        ));
        if what == "full hit" {
            full = times.micros(0.5);
        }
    }
    full
}

fn locating(filled: &Filled, conversations: &[Vec<BlockKey>]) -> Row {
    let mut found = PrefixMatch::default();
    let mut places = Vec::with_capacity(PROMPT_BLOCKS);
    let times = time(
        TIMES,
        |i| {
            let keys = warm(&conversations[i * 31 % conversations.len()]);
            filled.find(keys, &mut found);
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
    Row::new(name, times.micros(0.5), "us", Better::Lower).target(5.0)
}

/// What a concurrent map from key to owners takes, probed block by block.
fn naive(conversations: &[Vec<BlockKey>], full: f64) -> [Row; 2] {
    let map: DashMap<BlockKey, u64> = DashMap::new();
    for (number, keys) in conversations.iter().enumerate() {
        for key in keys {
            *map.entry(*key).or_default() |= 1 << (number % OWNERS);
        }
    }
    let times = time(
        TIMES / 10,
        |i| warm(&conversations[i * 31 % conversations.len()]),
        |keys| {
            let blocks = keys.iter().take_while(|key| map.contains_key(*key)).count();
            assert_eq!(black_box(blocks), PROMPT_BLOCKS);
        },
    );
    let naive = times.micros(0.5);
    [
        Row::new(
            "baseline: one DashMap probe per block, full hit, p50",
            naive,
            "us",
            Better::Lower,
        ),
        Row::new(
            "match against the baseline, full hit",
            naive / full,
            "x",
            Better::Higher,
        )
        .target(50.0),
    ]
}

fn shared_bytes(filled: &Filled) -> Row {
    let stats = filled.reader.stats();
    let bytes = stats.bytes as f64 / stats.replicas.max(1) as f64;
    Row::new(
        "memory per block replica, 1.5 owners a block",
        bytes,
        "B",
        Better::Lower,
    )
    .target(20.0)
}

/// Memory where no block has a second owner.
fn unshared_bytes(replicas: usize, rng: &mut Rng) -> Row {
    let (mut writer, reader) = snapshot();
    let mut slot = 0;
    if let Some(owner) = writer.add_owner() {
        for _ in 0..replicas.div_ceil(PROMPT_BLOCKS) {
            let run: Vec<u64> = (0..PROMPT_BLOCKS).map(|_| key(rng).fingerprint()).collect();
            let places: Vec<Location> = run.iter().map(|_| place(&mut slot)).collect();
            writer.add_run(owner, None, &run, &places);
        }
    }
    let stats = reader.stats();
    let bytes = stats.bytes as f64 / stats.replicas.max(1) as f64;
    Row::new(
        "memory per block replica, 1 owner a block",
        bytes,
        "B",
        Better::Lower,
    )
    .target(32.0)
}

#[cfg(test)]
mod tests;
