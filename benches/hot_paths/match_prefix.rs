//! Prefix matches in an index of a million blocks held by eight owners.
//!
//! Baseline: a concurrent hash map from fingerprint to owner, probed block by block until one is
//! missing. It answers less: no runs, no preferred owner, nobody excluded.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use dashmap::DashMap;
use flexkv_benches::{fingerprints, is_measured, keys, locations};
use flexkv_block::BlockKey;
use flexkv_index::{MatchOptions, OwnerSet, PrefixMatch, Snapshot, SnapshotWriter, snapshot};

/// Blocks of a prompt.
const BLOCKS: usize = 2048;
const OWNERS: usize = 8;

struct Index {
    prompts: Vec<Vec<BlockKey>>,
    _writer: SnapshotWriter,
    reader: Snapshot,
    map: DashMap<u64, u16>,
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let index = index(if is_measured() { 512 } else { 4 });
    let none = OwnerSet::EMPTY;
    let options = MatchOptions {
        prefer: None,
        exclude: &none,
    };
    let mut group = criterion.benchmark_group("match_prefix");
    for blocks in [16, 256, BLOCKS] {
        // Another prompt each time, so that caches help no more than they do in use.
        let mut prompts = index.prompts.iter().cycle();
        let mut out = PrefixMatch::default();
        group.throughput(Throughput::Elements(blocks as u64));
        group.bench_function(BenchmarkId::new("snapshot", blocks), |b| {
            b.iter(|| {
                let prompt = prompts.next().map_or(&[][..], |prompt| &prompt[..blocks]);
                index
                    .reader
                    .match_prefix(black_box(prompt), &options, &mut out);
                assert_eq!(out.blocks, blocks);
            });
        });
        group.bench_function(BenchmarkId::new("baseline_probes", blocks), |b| {
            b.iter(|| {
                let prompt = prompts.next().map_or(&[][..], |prompt| &prompt[..blocks]);
                assert_eq!(probe(&index.map, black_box(prompt)), blocks);
            });
        });
    }
    group.finish();
}

fn index(prompts: u64) -> Index {
    let (mut writer, reader) = snapshot();
    let owners: Vec<_> = (0..OWNERS).filter_map(|_| writer.add_owner()).collect();
    owners
        .iter()
        .for_each(|owner| writer.set_live(*owner, true));
    let map = DashMap::new();
    let prompts: Vec<_> = (0..prompts).map(|prompt| keys(prompt, BLOCKS)).collect();
    for (i, keys) in prompts.iter().enumerate() {
        let owner = owners[i % owners.len()];
        let fingerprints = fingerprints(keys);
        let locations = locations((i * BLOCKS) as u32, BLOCKS);
        writer.add_run(owner, None, &fingerprints, &locations);
        for fingerprint in fingerprints {
            map.insert(fingerprint, owner.0);
        }
    }
    Index {
        prompts,
        _writer: writer,
        reader,
        map,
    }
}

fn probe(map: &DashMap<u64, u16>, keys: &[BlockKey]) -> usize {
    keys.iter()
        .take_while(|key| map.get(&key.fingerprint()).is_some())
        .count()
}
