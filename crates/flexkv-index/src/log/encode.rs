//! Writes log entries. Knows nothing of why.

use bytes::Bytes;
use flexkv_block::{Checksum, Location};

use super::*;

impl Entry {
    /// The entry's bytes at `place`.
    pub fn encode(&self, place: EntryPlace) -> Bytes {
        match self {
            Self::Checkpoint(batch) => encode_batch(KIND_CHECKPOINT, batch, place),
            Self::Delta(batch) => encode_batch(KIND_DELTA, batch, place),
            Self::CheckpointEnd => seal(KIND_CHECKPOINT_END, 0, 0, vec![0; HEADER_BYTES], place),
            Self::Rotate(rotate) => {
                let mut out = vec![0; HEADER_BYTES];
                out.extend_from_slice(&rotate.next_epoch.to_le_bytes());
                out.extend_from_slice(&rotate.resume_after.to_le_bytes());
                seal(KIND_ROTATE, 0, 0, out, place)
            }
        }
    }
}

fn encode_batch(kind: u8, batch: &Batch, place: EntryPlace) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES + 16 * batch.heads.len() + 9 * batch.blocks());
    out.resize(HEADER_BYTES, 0);
    let mut last = LastLocation::default();
    for op in batch.ops() {
        match op {
            Op::Add {
                parent,
                fingerprints,
                locations,
            } => {
                out.push(parent.map_or(OP_ADD_FIRST, |_| OP_ADD_AFTER));
                varint(&mut out, fingerprints.len() as u64);
                if let Some(parent) = parent {
                    out.extend_from_slice(&parent.to_le_bytes());
                }
                words(&mut out, fingerprints);
                last.encode(&mut out, locations);
            }
            Op::Remove { fingerprints } => {
                out.push(OP_REMOVE);
                varint(&mut out, fingerprints.len() as u64);
                words(&mut out, fingerprints);
            }
        }
    }
    seal(kind, batch.heads.len(), batch.blocks(), out, place)
}

/// Fills the header in front of the body in `out`. Both counts are at most [`MAX_ENTRY_BLOCKS`].
fn seal(kind: u8, ops: usize, blocks: usize, mut out: Vec<u8>, place: EntryPlace) -> Bytes {
    out[0] = MAGIC;
    out[1] = VERSION;
    out[2] = kind;
    out[4..6].copy_from_slice(&(ops as u16).to_le_bytes());
    out[6..8].copy_from_slice(&(blocks as u16).to_le_bytes());
    let sum = checksum(place, &out);
    out[8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    out.into()
}

/// Over the place, and the entry without its checksum field.
pub(super) fn checksum(place: EntryPlace, entry: &[u8]) -> u64 {
    let mut sum = Checksum::stream();
    sum.update(&place.incarnation.to_le_bytes());
    sum.update(&place.sequence.to_le_bytes());
    sum.update(&entry[..8]);
    sum.update(&entry[HEADER_BYTES..]);
    sum.finish().0
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// 7 bits a byte, lowest first, top bit set on all but the last.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small for small differences of either sign.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Slot and generation of the location written or read before; what follows is relative to it.
#[derive(Default)]
pub(super) struct LastLocation {
    pub(super) slot: i64,
    pub(super) generation: i64,
}

impl LastLocation {
    /// Writes spans: blocks of one tier and generation whose slots ascend or descend by one.
    fn encode(&mut self, out: &mut Vec<u8>, mut locations: &[Location]) {
        while let Some(first) = locations.first() {
            let (span, step) = span_of(locations);
            let down = u64::from(step < 0);
            varint(out, (span as u64 - 1) << 3 | down << 2 | first.tier as u64);
            let (slot, generation) = (i64::from(first.slot.0), i64::from(first.generation.get()));
            varint(out, zigzag(slot - self.slot));
            varint(out, zigzag(generation - self.generation));
            self.slot = slot + step * (span as i64 - 1);
            self.generation = generation;
            locations = &locations[span..];
        }
    }
}

/// How many leading locations make one span, and the step between their slots.
fn span_of(locations: &[Location]) -> (usize, i64) {
    let step = |a: &Location, b: &Location| {
        let same = a.tier == b.tier && a.generation == b.generation;
        let step = i64::from(b.slot.0) - i64::from(a.slot.0);
        (same && step.abs() == 1).then_some(step)
    };
    let Some(first) = locations.get(1).and_then(|next| step(&locations[0], next)) else {
        return (1, 1);
    };
    let more = locations
        .windows(2)
        .take_while(|pair| step(&pair[0], &pair[1]) == Some(first))
        .count();
    (1 + more, first)
}
