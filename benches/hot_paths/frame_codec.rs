//! A block's frame: its header, and the checksum of a payload of 1 MiB.
//!
//! Baselines: copying the header, copying the payload.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use flexkv_benches::{keys, locations, payload};
use flexkv_block::{Checksum, FRAME_HEADER_BYTES, FrameHeader};

const PAYLOAD_BYTES: usize = 1 << 20;

pub(crate) fn bench(criterion: &mut Criterion) {
    let payload = payload(1, PAYLOAD_BYTES);
    let header = FrameHeader {
        key: keys(1, 1)[0],
        location: locations(7, 1)[0],
        length: PAYLOAD_BYTES as u32,
        checksum: Checksum::of(&payload),
    };
    let bytes = header.encode();
    let mut group = criterion.benchmark_group("frame_codec");
    group.throughput(Throughput::Bytes(FRAME_HEADER_BYTES as u64));
    group.bench_function("encode", |b| b.iter(|| black_box(&header).encode()));
    group.bench_function("decode", |b| {
        b.iter(|| FrameHeader::decode(black_box(&bytes)));
    });
    group.bench_function("baseline_copy_header", |b| b.iter(|| *black_box(&bytes)));

    let mut into = vec![0; PAYLOAD_BYTES];
    group.throughput(Throughput::Bytes(PAYLOAD_BYTES as u64));
    group.bench_function("checksum", |b| b.iter(|| Checksum::of(black_box(&payload))));
    group.bench_function("copy_and_checksum", |b| {
        b.iter(|| copy_and_checksum(black_box(&payload), &mut into));
    });
    group.bench_function("baseline_copy", |b| {
        b.iter(|| black_box(&mut into).copy_from_slice(black_box(&payload)));
    });
    group.finish();
}

/// In windows, as the data path does: summed while they are in cache.
fn copy_and_checksum(from: &[u8], into: &mut [u8]) -> Checksum {
    const WINDOW: usize = 128 << 10;
    let mut sum = Checksum::stream();
    for (from, into) in from.chunks(WINDOW).zip(into.chunks_mut(WINDOW)) {
        into.copy_from_slice(from);
        sum.update(into);
    }
    sum.finish()
}
