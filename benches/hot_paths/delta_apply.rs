//! What a follower does with one log entry of 100 blocks: decode it, and apply it to the index.
//!
//! Every block is added and removed again, so that the index keeps its size. Baseline: the same
//! blocks into a concurrent hash map and out of it, without decoding anything.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use dashmap::DashMap;
use flexkv_benches::{fingerprints, is_measured, keys, locations};
use flexkv_index::log::{Batch, Entry, EntryPlace, Op};
use flexkv_index::{OwnerId, SnapshotWriter, snapshot};

/// Blocks of an entry.
const BLOCKS: usize = 100;
const PLACE: EntryPlace = EntryPlace {
    incarnation: 7,
    sequence: 1,
};

pub(crate) fn bench(criterion: &mut Criterion) {
    let (mut writer, _reader) = snapshot();
    let owner = writer.add_owner().expect("the first owner");
    writer.set_live(owner, true);
    fill(&mut writer, owner, if is_measured() { 10_000 } else { 10 });
    let fingerprints = fingerprints(&keys(u64::MAX, BLOCKS));
    let locations = locations(0, BLOCKS);
    let (mut add, mut remove) = (Batch::default(), Batch::default());
    add.add(None, &fingerprints, &locations);
    remove.remove(&fingerprints);
    let entries = [Entry::Delta(add), Entry::Delta(remove)];
    let bytes = entries.each_ref().map(|entry| entry.encode(PLACE));

    let mut group = criterion.benchmark_group("delta_apply");
    group.throughput(Throughput::Elements(2 * BLOCKS as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            entries
                .each_ref()
                .map(|entry| black_box(entry).encode(PLACE))
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| {
            bytes
                .each_ref()
                .map(|bytes| Entry::decode(black_box(bytes), PLACE))
        });
    });
    group.bench_function("apply", |b| {
        b.iter(|| {
            entries
                .iter()
                .for_each(|entry| apply(&mut writer, owner, black_box(entry)))
        });
    });
    let map: DashMap<u64, u16> = DashMap::new();
    group.bench_function("baseline_map", |b| {
        b.iter(|| {
            for fingerprint in black_box(&fingerprints) {
                map.insert(*fingerprint, owner.0);
            }
            for fingerprint in &fingerprints {
                map.remove(fingerprint);
            }
        });
    });
    group.finish();
}

fn fill(writer: &mut SnapshotWriter, owner: OwnerId, entries: u64) {
    for i in 0..entries {
        let fingerprints = fingerprints(&keys(i, BLOCKS));
        let first = (i as u32).wrapping_mul(BLOCKS as u32);
        writer.add_run(owner, None, &fingerprints, &locations(first, BLOCKS));
    }
}

fn apply(writer: &mut SnapshotWriter, owner: OwnerId, entry: &Entry) {
    let Entry::Delta(batch) = entry else {
        return;
    };
    for op in batch.ops() {
        match op {
            Op::Add {
                parent,
                fingerprints,
                locations,
            } => writer.add_run(owner, parent, fingerprints, locations),
            Op::Remove { fingerprints } => writer.remove(owner, fingerprints),
        }
    }
}
