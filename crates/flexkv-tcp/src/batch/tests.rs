//! Tests of the batch on its own.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Generation, Location, SlotId, Tier};
use flexkv_ports::{BlockTier, HeapTier, TierShape};

use super::*;
use crate::deadline::until;

const SLOTS: usize = 300;

fn tier(block_bytes: usize) -> HeapTier {
    HeapTier::new(TierShape {
        tier: Tier::Host,
        slots: SLOTS as u32,
        block_bytes,
    })
}

fn batch(
    tier: &HeapTier,
    count: usize,
) -> (Arc<Batch>, oneshot::Receiver<Vec<Fetched>>, Vec<SlotId>) {
    let want = |n: usize| Want {
        location: Location {
            tier: Tier::Host,
            slot: SlotId(n as u32),
            generation: Generation::FIRST,
        },
        key: BlockKey::from_u128(n as u128),
        into: tier.reserve().expect("a free slot"),
    };
    let wants: Vec<_> = (0..count).map(want).collect();
    let slots = wants.iter().map(|want| want.into.slot()).collect();
    let (batch, answer) = Batch::new(wants, until(Duration::from_secs(60)));
    (batch, answer, slots)
}

/// The blocks of the pieces that `connections` connections take from `count` blocks.
fn pieces(block_bytes: usize, count: usize, connections: usize) -> Vec<usize> {
    let tier = tier(block_bytes);
    let (batch, _answer, _) = batch(&tier, count);
    std::iter::from_fn(|| batch.take(connections))
        .map(|piece| piece.parts.len())
        .collect()
}

#[test]
fn pieces_shrink_towards_the_end() {
    assert_eq!(pieces(64 << 10, 1, 2), [1]);
    assert_eq!(pieces(64 << 10, 32, 2), [8, 8, 8, 4, 4]);
    assert_eq!(pieces(1, 300, 2), [128, 128, 44]);
    assert_eq!(pieces(8 << 20, 3, 2), [1, 1, 1]);
}

#[test]
fn small_batches_use_few_connections() {
    let width = |block_bytes, count| batch(&tier(block_bytes), count).0.width(4);
    assert_eq!(width(64 << 10, 1), 1);
    assert_eq!(width(64 << 10, 4), 1);
    assert_eq!(width(64 << 10, 5), 2);
    assert_eq!(width(1 << 20, 2), 2);
    assert_eq!(width(1 << 20, 100), 4);
}

#[test]
fn every_want_comes_back_in_its_place_whoever_drops_it() {
    let tier = tier(256 << 10);
    let (batch, mut answer, slots) = batch(&tier, 5);
    let fetched = FetchOutcome::Fetched(Checksum(1));
    let mut first = batch.take(2).expect("a piece");
    let second = batch.take(2).expect("a piece");
    first.parts[0].outcome = fetched;
    drop(second);
    assert!(answer.try_recv().is_err(), "answered before all came back");
    batch.fail_rest();
    drop(first);
    let got = answer.try_recv().expect("the answer");
    let back: Vec<_> = got.iter().map(|fetched| fetched.into.slot()).collect();
    assert_eq!(back, slots);
    assert_eq!(got[0].outcome, fetched);
    for late in &got[1..] {
        assert_eq!(late.outcome, FetchOutcome::Unreachable);
    }
}

#[test]
fn buffers_of_a_forgotten_batch_return_to_their_tier() {
    let tier = tier(256 << 10);
    let (batch, answer, _) = batch(&tier, 4);
    let piece = batch.take(2).expect("a piece");
    drop(answer);
    batch.forget_rest();
    let out = piece.parts.len();
    assert_eq!(tier.free_slots(), SLOTS - out, "only the piece's are out");
    drop(piece);
    assert!(batch.is_taken());
    drop(batch);
    assert_eq!(tier.free_slots(), SLOTS);
}
