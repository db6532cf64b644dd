//! Keys of a prompt of 2,048 blocks, in tokens a second.
//!
//! Baselines: the standard library's hasher in the same chain (SipHash, 64 bits, no key), and only
//! copying the tokens, which no hash can beat.

use std::hash::{DefaultHasher, Hasher as _};
use std::hint::black_box;

use criterion::{Criterion, Throughput};
use flexkv_benches::{BLOCK_TOKENS, root, secret, tokens};
use flexkv_block::{BlockKey, KeyChain, TokenId};

const BLOCKS: usize = 2048;

pub(crate) fn bench(criterion: &mut Criterion) {
    let secret = secret();
    let root = root().expect("the layout is valid");
    let prompt = tokens(1, BLOCKS * BLOCK_TOKENS);
    let mut group = criterion.benchmark_group("hashing");
    group.throughput(Throughput::Elements(prompt.len() as u64));
    group.bench_function("key_chain", |b| {
        b.iter(|| KeyChain::keys(&secret, root, BLOCK_TOKENS, black_box(&prompt)));
    });
    let mut grown = KeyChain::new(&secret, root, BLOCK_TOKENS);
    grown.extend(&prompt, &mut Vec::new());
    group.throughput(Throughput::Elements(BLOCK_TOKENS as u64));
    group.bench_function("key_chain_grows_by_a_block", |b| {
        let mut keys: Vec<BlockKey> = Vec::new();
        b.iter(|| {
            keys.clear();
            grown.extend(black_box(&prompt[..BLOCK_TOKENS]), &mut keys);
        });
    });
    group.throughput(Throughput::Elements(prompt.len() as u64));
    group.bench_function("baseline_std_hasher", |b| {
        b.iter(|| std_hasher(black_box(&prompt)));
    });
    group.bench_function("baseline_copy", |b| b.iter(|| black_box(&prompt).clone()));
    group.finish();
}

fn std_hasher(prompt: &[TokenId]) -> Vec<u64> {
    let mut tip = 0;
    let blocks = prompt.chunks_exact(BLOCK_TOKENS).map(|block| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(tip);
        block.iter().for_each(|token| hasher.write_u32(*token));
        tip = hasher.finish();
        tip
    });
    blocks.collect()
}
