//! The suite for [`BlockTier`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use flexkv_block::{Checksum, Generation, Location, SlotId, Tier};

use super::{block, key, pinned, put};
use crate::{BlockTier, Eviction, PinRefusal, TierUsage};

/// Bytes of the blocks of most cases: neither a power of two nor a multiple of the word size.
const BYTES: usize = 1001;

/// Checks a tier. `make(slots, block_bytes)` must give a new, empty tier of that size.
pub fn tier(make: impl Fn(u32, usize) -> Arc<dyn BlockTier>) {
    has_the_size_asked_for(&make);
    gives_out_every_slot_once(&*make(5, BYTES));
    reads_back_what_was_committed(&make);
    hides_a_slot_until_it_is_committed(&*make(1, BYTES));
    never_shows_an_abandoned_slot(&*make(1, BYTES));
    refuses_locations_that_are_not_the_block(&*make(3, BYTES));
    keeps_a_pinned_block(&*make(1, BYTES));
    gives_a_refilled_slot_a_new_generation(&*make(1, BYTES));
    counts_slots_by_their_use(&*make(4, BYTES));
    refuses_slots_of_another_tier(&*make(1, BYTES), &*make(1, BYTES));
    lets_guards_outlive_it(make(2, BYTES));
    keeps_its_promises_to_many_threads(&*make(4, BYTES));
}

fn has_the_size_asked_for(make: &impl Fn(u32, usize) -> Arc<dyn BlockTier>) {
    for (slots, bytes) in [(1, 1), (3, 4096), (2, 5000)] {
        let shape = make(slots, bytes).shape();
        assert_eq!((shape.slots, shape.block_bytes), (slots, bytes));
    }
}

fn gives_out_every_slot_once(tier: &dyn BlockTier) {
    let taken: Vec<_> = std::iter::from_fn(|| tier.reserve()).take(6).collect();
    let mut ids: Vec<u32> = taken.iter().map(|slot| slot.slot().0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4], "slots given out");
    for (n, slot) in taken.iter().enumerate() {
        assert_eq!(slot.bytes().len(), BYTES, "bytes to write to");
        slot.bytes().write(0, &block(n as u64, BYTES));
    }
    for (n, slot) in taken.iter().enumerate() {
        let expected = block(n as u64, BYTES);
        assert_eq!(slot.bytes().to_vec(), expected, "slots overlap");
    }
    drop(taken);
    assert_eq!(tier.free_slots(), 5, "slots given back without a commit");
}

fn reads_back_what_was_committed(make: &impl Fn(u32, usize) -> Arc<dyn BlockTier>) {
    for bytes in [1, BYTES, 4096, 70_000] {
        let tier = make(3, bytes);
        let locations: Vec<_> = (0..3).map(|n| put(&*tier, n)).collect();
        for (n, location) in locations.into_iter().enumerate() {
            assert_eq!(location.tier, tier.shape().tier);
            drop(pinned(&*tier, location, n as u64));
        }
    }
}

fn hides_a_slot_until_it_is_committed(tier: &dyn BlockTier) {
    let slot = tier.reserve().expect("a new tier has a free slot");
    let bytes = block(1, BYTES);
    slot.bytes().write(0, &bytes);
    for generation in 1..4 {
        let guess = at(tier, slot.slot(), generation);
        assert_eq!(refusal(tier, guess, 1), PinRefusal::Stale);
        assert_eq!(tier.evict(guess), Eviction::Stale);
    }
    let location = tier.commit(slot, key(1), Checksum::of(&bytes));
    drop(pinned(tier, location, 1));
}

fn never_shows_an_abandoned_slot(tier: &dyn BlockTier) {
    let old = put(tier, 1);
    assert_eq!(tier.evict(old), Eviction::Done);
    let slot = tier.reserve().expect("the evicted slot is free");
    slot.bytes().write(0, &block(2, BYTES));
    drop(slot);
    for n in [1, 2] {
        for generation in 1..4 {
            let guess = at(tier, old.slot, generation);
            assert_eq!(refusal(tier, guess, n), PinRefusal::Stale);
        }
    }
    assert_eq!(tier.free_slots(), 1, "the abandoned slot is free again");
}

fn refuses_locations_that_are_not_the_block(tier: &dyn BlockTier) {
    let location = put(tier, 1);
    let other = put(tier, 2);
    let foreign = match location.tier {
        Tier::Host => Tier::Ssd,
        Tier::Ssd => Tier::Host,
    };
    let wrong = [
        Location {
            tier: foreign,
            ..location
        },
        Location {
            slot: SlotId(2),
            ..location
        },
        Location {
            slot: SlotId(3),
            ..location
        },
        Location {
            slot: SlotId(u32::MAX),
            ..location
        },
        Location {
            generation: location.generation.next(),
            ..location
        },
        at(tier, location.slot, Generation::MAX),
    ];
    for wrong in wrong {
        assert_eq!(refusal(tier, wrong, 1), PinRefusal::Stale, "{wrong:?}");
        assert_eq!(tier.evict(wrong), Eviction::Stale, "{wrong:?}");
    }
    assert_eq!(refusal(tier, location, 2), PinRefusal::Stale, "another key");
    assert_eq!(refusal(tier, other, 1), PinRefusal::Stale, "another slot");
    drop(pinned(tier, location, 1));
}

fn keeps_a_pinned_block(tier: &dyn BlockTier) {
    let location = put(tier, 1);
    let first = pinned(tier, location, 1);
    let second = pinned(tier, location, 1);
    assert_eq!(tier.evict(location), Eviction::Pinned, "two pins");
    drop(first);
    assert_eq!(tier.evict(location), Eviction::Pinned, "one pin is left");
    assert!(tier.reserve().is_none(), "a pinned slot was given out");
    assert_eq!(second.bytes().to_vec(), block(1, BYTES));
    drop(second);
    assert_eq!(tier.evict(location), Eviction::Done);
    assert_eq!(tier.evict(location), Eviction::Stale, "evicted twice");
    assert_eq!(refusal(tier, location, 1), PinRefusal::Stale);
}

fn gives_a_refilled_slot_a_new_generation(tier: &dyn BlockTier) {
    let mut old = put(tier, 0);
    for n in 1..5 {
        assert_eq!(tier.evict(old), Eviction::Done);
        let new = put(tier, n);
        assert_eq!(new.slot, old.slot, "there is one slot only");
        assert_ne!(new.generation, old.generation, "generation of new content");
        for n in [n - 1, n] {
            assert_eq!(refusal(tier, old, n), PinRefusal::Stale);
        }
        assert_eq!(tier.evict(old), Eviction::Stale);
        drop(pinned(tier, new, n));
        old = new;
    }
}

fn counts_slots_by_their_use(tier: &dyn BlockTier) {
    let counts = |free, filling, blocks, pinned, when| {
        let expected = TierUsage {
            free,
            filling,
            blocks,
            pinned,
        };
        assert_eq!(tier.usage(), expected, "{when}");
        assert_eq!(tier.free_slots(), free, "{when}");
    };
    counts(4, 0, 0, 0, "a new tier is empty");
    let filling = tier.reserve();
    let location = put(tier, 1);
    let other = put(tier, 2);
    counts(1, 1, 2, 0, "one being filled, two held");
    let pins = [pinned(tier, location, 1), pinned(tier, location, 1)];
    counts(
        1,
        1,
        2,
        1,
        "a pin takes no slot, and two of one block are one",
    );
    drop((pins, filling));
    counts(2, 0, 2, 0, "all guards are gone");
    assert_eq!(tier.evict(location), Eviction::Done);
    assert_eq!(tier.evict(other), Eviction::Done);
    counts(4, 0, 0, 0, "all blocks are gone");
}

fn refuses_slots_of_another_tier(tier: &dyn BlockTier, other: &dyn BlockTier) {
    let slot = other.reserve().expect("a new tier has a free slot");
    let commit = AssertUnwindSafe(|| tier.commit(slot, key(1), Checksum(0)));
    assert!(
        catch_unwind(commit).is_err(),
        "took a slot of another tier; a panic is expected"
    );
    drop(pinned(tier, put(tier, 1), 1));
}

fn lets_guards_outlive_it(tier: Arc<dyn BlockTier>) {
    let location = put(&*tier, 1);
    let read = pinned(&*tier, location, 1);
    let write = tier.reserve().expect("one of two slots is free");
    drop(tier);
    write.bytes().write(0, &block(2, BYTES));
    assert_eq!(read.bytes().to_vec(), block(1, BYTES));
}

/// Threads fill, publish to each other, read and evict; no reader may ever see other bytes.
fn keeps_its_promises_to_many_threads(tier: &dyn BlockTier) {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 1000;
    let shown = std::sync::Mutex::new(Vec::<(Location, u64)>::new());
    let work = |thread: u64| {
        let mut rng = fastrand::Rng::with_seed(thread);
        for round in 0..ROUNDS {
            let n = thread * ROUNDS + round;
            if let Some(slot) = tier.reserve() {
                let bytes = block(n, BYTES);
                slot.bytes().write(0, &bytes);
                let location = tier.commit(slot, key(n), Checksum::of(&bytes));
                shown.lock().expect("no panic").push((location, n));
            }
            let chosen = rng.choice(&*shown.lock().expect("no panic")).copied();
            let Some((location, n)) = chosen else {
                continue;
            };
            if let Ok(pin) = tier.pin(location, key(n)) {
                assert!(pin.verify(), "a pinned block has other bytes");
                std::thread::yield_now();
                assert_eq!(
                    pin.bytes().to_vec(),
                    block(n, BYTES),
                    "a pinned block changed"
                );
                assert_ne!(tier.evict(location), Eviction::Done, "evicted under a pin");
            }
            let mut list = shown.lock().expect("no panic");
            if tier.evict(location) == Eviction::Done {
                list.retain(|(other, _)| *other != location);
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        (0..THREADS).for_each(|thread| drop(scope.spawn(move || work(thread))));
    });
    for (location, n) in shown.into_inner().expect("no panic") {
        drop(pinned(tier, location, n));
        assert_eq!(tier.evict(location), Eviction::Done);
    }
    assert_eq!(tier.free_slots(), 4, "slots leaked");
}

fn at(tier: &dyn BlockTier, slot: SlotId, generation: u32) -> Location {
    Location {
        tier: tier.shape().tier,
        slot,
        generation: Generation::new(generation).expect("a valid generation"),
    }
}

fn refusal(tier: &dyn BlockTier, location: Location, n: u64) -> PinRefusal {
    tier.pin(location, key(n))
        .expect_err("must not be readable")
}
