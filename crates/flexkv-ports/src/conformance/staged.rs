//! The suite for [`StagedTier`].

use std::collections::BTreeSet;
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Generation, Location, SlotId, Tier};
use futures_util::future::join_all;

use super::{block, eventually, key, pinned, put};
use crate::{
    BlockTier, BoxFuture, Eviction, HeapTier, ReadRefusal, StagedTier, TierShape, WriteRefusal,
};

/// Bytes of most cases' blocks.
const BYTES: usize = 8192;

/// Checks a staged tier. `make(slots, block_bytes)` must give a new, empty tier of that size.
pub async fn staged(make: impl Fn(u32, usize) -> Arc<dyn StagedTier>) {
    has_the_size_asked_for(&make);
    for bytes in [1, 1001, 4096, BYTES, 70_000, 1 << 20] {
        reads_back_what_was_written(&*make(3, bytes), bytes).await;
    }
    refuses_locations_that_are_not_the_block(&*make(3, BYTES)).await;
    refuses_what_does_not_fit(&*make(2, BYTES)).await;
    returns_no_block_that_was_damaged_before(&*make(1, BYTES)).await;
    gives_a_refilled_slot_a_new_generation(&*make(1, BYTES)).await;
    takes_and_gives_many_at_once(&*make(64, BYTES)).await;
    gives_everything_back_when_nobody_waits(&*make(8, BYTES)).await;
    survives_its_own_end_with_transfers_open(make(8, BYTES)).await;
}

/// Memory from which is written and into which is read.
fn memory(slots: u32, block_bytes: usize) -> HeapTier {
    HeapTier::new(TierShape {
        tier: Tier::Host,
        slots,
        block_bytes,
    })
}

/// Writes test block `n`, whose parent is block `n - 1`.
fn write(
    tier: &dyn StagedTier,
    memory: &HeapTier,
    n: u64,
) -> BoxFuture<'static, Result<Location, WriteRefusal>> {
    let at = put(memory, n);
    let pin = pinned(memory, at, n);
    let parent = n.checked_sub(1).map(key);
    let writing = tier.write(pin, parent);
    let memory = memory.clone();
    Box::pin(async move {
        let outcome = writing.await;
        eventually("the slot that was written from is free", || {
            memory.evict(at) == Eviction::Done
        })
        .await;
        outcome
    })
}

async fn written(tier: &dyn StagedTier, memory: &HeapTier, n: u64) -> Location {
    match write(tier, memory, n).await {
        Ok(location) => location,
        Err(refusal) => panic!("block {n} was not written: {refusal:?}"),
    }
}

/// Reads test block `n` and checks its bytes, or says why it was refused.
async fn read(
    tier: &dyn StagedTier,
    memory: &HeapTier,
    location: Location,
    key: BlockKey,
    n: u64,
) -> Result<(), ReadRefusal> {
    let into = memory.reserve().expect("a slot to read into");
    let read = tier.read(location, key, into).await;
    let sum = read.outcome?;
    let expected = block(n, tier.shape().block_bytes);
    assert_eq!(read.into.bytes().to_vec(), expected, "bytes of block {n}");
    assert_eq!(sum, Checksum::of(&expected), "checksum of block {n}");
    Ok(())
}

async fn assert_reads(tier: &dyn StagedTier, memory: &HeapTier, location: Location, n: u64) {
    let outcome = read(tier, memory, location, key(n), n).await;
    assert_eq!(outcome, Ok(()), "block {n} at {location:?}");
}

fn has_the_size_asked_for(make: &impl Fn(u32, usize) -> Arc<dyn StagedTier>) {
    for (slots, bytes) in [(1, 1), (3, 4096), (2, 5000)] {
        let tier = make(slots, bytes);
        let shape = tier.shape();
        assert_eq!((shape.slots, shape.block_bytes), (slots, bytes));
        assert_eq!(tier.free_slots(), slots as usize, "a new tier is empty");
        assert_eq!(tier.recovered(), [], "a new tier is empty");
        assert_eq!(tier.lost(), [], "a new tier has lost nothing");
    }
}

async fn reads_back_what_was_written(tier: &dyn StagedTier, bytes: usize) {
    let memory = memory(1, bytes);
    let mut at = Vec::new();
    for n in 0..3 {
        at.push(written(tier, &memory, n).await);
    }
    assert!(tier.sync().await, "nothing speaks against it");
    for (n, location) in (0..).zip(at) {
        assert_eq!(location.tier, tier.shape().tier);
        assert_reads(tier, &memory, location, n).await;
        assert_reads(tier, &memory, location, n).await;
    }
    assert_eq!(memory.free_slots(), 1, "slots of memory come back");
}

async fn refuses_locations_that_are_not_the_block(tier: &dyn StagedTier) {
    let memory = memory(2, BYTES);
    let location = written(tier, &memory, 1).await;
    let other = written(tier, &memory, 2).await;
    let generation = |g| Generation::new(g).expect("a valid generation");
    let slot = |slot| Location {
        slot: SlotId(slot),
        ..location
    };
    let wrong = [
        Location {
            tier: Tier::Host,
            ..location
        },
        slot(3),
        slot(u32::MAX),
        Location {
            generation: location.generation.next(),
            ..location
        },
        Location {
            generation: generation(Generation::MAX),
            ..location
        },
    ];
    for wrong in wrong {
        let outcome = read(tier, &memory, wrong, key(1), 1).await;
        assert_eq!(outcome, Err(ReadRefusal::Stale), "{wrong:?}");
        assert_eq!(tier.evict(wrong), Eviction::Stale, "{wrong:?}");
    }
    for (at, n) in [(location, 2), (other, 1)] {
        let outcome = read(tier, &memory, at, key(n), n).await;
        assert_eq!(outcome, Err(ReadRefusal::Stale), "key {n} at {at:?}");
    }
    assert_reads(tier, &memory, location, 1).await;
}

async fn refuses_what_does_not_fit(tier: &dyn StagedTier) {
    let memory = memory(1, BYTES);
    let first = written(tier, &memory, 0).await;
    let second = written(tier, &memory, 1).await;
    assert_eq!(tier.free_slots(), 0);
    let outcome = write(tier, &memory, 2).await;
    assert_eq!(outcome, Err(WriteRefusal::Full), "all slots hold blocks");
    assert_eq!(tier.evict(first), Eviction::Done);
    let third = written(tier, &memory, 3).await;
    assert_reads(tier, &memory, second, 1).await;
    assert_reads(tier, &memory, third, 3).await;
    let outcome = read(tier, &memory, first, key(0), 0).await;
    assert_eq!(outcome, Err(ReadRefusal::Stale), "evicted");
}

async fn returns_no_block_that_was_damaged_before(tier: &dyn StagedTier) {
    let memory = memory(2, BYTES);
    let at = put(&memory, 1);
    let pin = pinned(&memory, at, 1);
    pin.bytes().write(BYTES / 2, b"other bytes");
    let location = tier.write(pin, None).await.expect("it is not looked at");
    let outcome = read(tier, &memory, location, key(1), 1).await;
    assert_eq!(outcome, Err(ReadRefusal::Corrupt));
    let outcome = read(tier, &memory, location, key(1), 1).await;
    assert_eq!(outcome, Err(ReadRefusal::Stale), "it is dropped");
}

async fn gives_a_refilled_slot_a_new_generation(tier: &dyn StagedTier) {
    let memory = memory(1, BYTES);
    let mut old = written(tier, &memory, 0).await;
    for n in 1..5 {
        assert_eq!(tier.evict(old), Eviction::Done);
        assert_eq!(tier.evict(old), Eviction::Stale, "evicted twice");
        let new = written(tier, &memory, n).await;
        assert_eq!(new.slot, old.slot, "there is one slot only");
        assert_ne!(new.generation, old.generation, "generation of new content");
        for n in [n - 1, n] {
            let outcome = read(tier, &memory, old, key(n), n).await;
            assert_eq!(outcome, Err(ReadRefusal::Stale), "a former generation");
        }
        assert_reads(tier, &memory, new, n).await;
        old = new;
    }
}

async fn takes_and_gives_many_at_once(tier: &dyn StagedTier) {
    let memory = memory(64, BYTES);
    let mut at: Vec<(u64, Location)> = Vec::new();
    let mut open: Vec<u64> = (0..64).collect();
    while !open.is_empty() {
        let outcomes = join_all(open.iter().map(|n| write(tier, &memory, *n))).await;
        let mut again = Vec::new();
        for (n, outcome) in open.into_iter().zip(outcomes) {
            match outcome {
                Ok(location) => at.push((n, location)),
                Err(WriteRefusal::Busy) => again.push(n),
                Err(refusal) => panic!("block {n} was not written: {refusal:?}"),
            }
        }
        open = again;
    }
    let slots: BTreeSet<SlotId> = at.iter().map(|(_, location)| location.slot).collect();
    assert_eq!(slots.len(), 64, "slots given out twice");
    while !at.is_empty() {
        let reads = at
            .iter()
            .map(|(n, location)| read(tier, &memory, *location, key(*n), *n));
        let outcomes = join_all(reads).await;
        let mut outcomes = outcomes.into_iter();
        at.retain(|(n, _)| match outcomes.next() {
            Some(Err(ReadRefusal::Busy)) => true,
            Some(Ok(())) => false,
            other => panic!("block {n} was not read: {other:?}"),
        });
    }
    assert_eq!(memory.free_slots(), 64, "slots of memory come back");
}

async fn gives_everything_back_when_nobody_waits(tier: &dyn StagedTier) {
    let memory = memory(8, BYTES);
    let at = written(tier, &memory, 0).await;
    for n in 1..4 {
        drop(write(tier, &memory, n));
        let into = memory.reserve().expect("a slot to read into");
        drop(tier.read(at, key(0), into));
    }
    eventually("slots of transfers that nobody waits for are free", || {
        (1..4).for_each(|n| evict_if_there(&memory, n));
        memory.free_slots() == 8
    })
    .await;
    assert_reads(tier, &memory, at, 0).await;
    assert_eq!(tier.evict(at), Eviction::Done, "no reader is left");
}

/// Evicts test block `n` wherever it lies, unless someone holds it.
fn evict_if_there(memory: &HeapTier, n: u64) {
    for slot in 0..memory.shape().slots {
        for generation in 1..4 {
            let location = Location {
                tier: Tier::Host,
                slot: SlotId(slot),
                generation: Generation::new(generation).expect("a valid generation"),
            };
            if memory.pin(location, key(n)).is_ok() {
                memory.evict(location);
            }
        }
    }
}

async fn survives_its_own_end_with_transfers_open(tier: Arc<dyn StagedTier>) {
    let memory = memory(4, BYTES);
    let at = written(&*tier, &memory, 0).await;
    let writing = write(&*tier, &memory, 1);
    let into = memory.reserve().expect("a slot to read into");
    let reading = tier.read(at, key(0), into);
    drop(tier);
    let read = reading.await;
    if read.outcome.is_ok() {
        assert_eq!(read.into.bytes().to_vec(), block(0, BYTES));
    }
    drop(read);
    // Written or refused, but not forgotten.
    writing.await.ok();
    assert_eq!(memory.free_slots(), 4, "slots of memory come back");
}
