//! The states of slots, and what may not happen in them.

use super::*;

fn key(n: u32) -> BlockKey {
    BlockKey::from_u128(u128::from(n))
}

fn held(slot: u32, generation: Generation) -> Held {
    Held {
        slot,
        generation,
        key: key(slot),
        parent: None,
        checksum: Checksum(u64::from(slot)),
    }
}

fn filled(slots: &mut Slots) -> (u32, Generation) {
    let (slot, generation) = slots.take().expect("a free slot");
    slots.hold(&held(slot, generation));
    (slot, generation)
}

#[test]
fn a_slot_is_free_again_only_after_the_journal_was_told() {
    let mut slots = Slots::new(1, &[]);
    let (slot, first) = filled(&mut slots);
    assert_eq!(slots.take(), None);
    let (outcome, left) = slots.evict(slot, first);
    assert_eq!(outcome, Eviction::Done);
    assert_eq!(left.map(|left| (left.slot, left.reuse)), Some((slot, true)));
    assert_eq!(slots.take(), None, "the journal was not told");
    assert!(slots.is_leaving());
    assert_eq!(slots.begin_read(slot, first, key(slot)), None);
    slots.freed(slot);
    let (_, second) = slots.take().expect("free again");
    assert_ne!(first, second);
}

#[test]
fn a_block_that_is_read_stays() {
    let mut slots = Slots::new(2, &[]);
    let (slot, generation) = filled(&mut slots);
    let sum = slots.begin_read(slot, generation, key(slot));
    assert_eq!(sum, Some(Checksum(u64::from(slot))));
    assert_eq!(slots.evict(slot, generation), (Eviction::Pinned, None));
    assert_eq!(slots.end_read(slot), None);
    assert_eq!(slots.evict(slot, generation).0, Eviction::Done);
    assert_eq!(slots.evict(slot, generation), (Eviction::Stale, None));
}

#[test]
fn a_condemned_block_goes_with_its_last_reader() {
    for (verdict, reuse) in [(Fate::Drop, true), (Fate::Retire, false)] {
        let mut slots = Slots::new(1, &[]);
        let (slot, generation) = filled(&mut slots);
        for _ in 0..2 {
            slots.begin_read(slot, generation, key(slot)).expect("held");
        }
        slots.condemn(slot, verdict);
        slots.condemn(slot, Fate::Drop);
        let more = slots.begin_read(slot, generation, key(slot));
        assert_eq!(more, None, "nobody reads it any more");
        assert_eq!(slots.evict(slot, generation), (Eviction::Stale, None));
        assert_eq!(slots.end_read(slot), None, "one reader is left");
        let left = slots.end_read(slot).expect("the last one");
        assert_eq!(left.reuse, reuse);
        slots.freed(slot);
        assert_eq!(slots.take().is_some(), reuse);
        assert_eq!(slots.usable(), usize::from(reuse));
    }
}

#[test]
fn slots_that_failed_are_not_used_again() {
    let mut slots = Slots::new(2, &[]);
    let (slot, _) = slots.take().expect("a free slot");
    slots.retire(slot);
    slots.retire(slot);
    assert_eq!((slots.usable(), slots.free()), (1, 1));
    let (other, _) = slots.take().expect("the other one");
    assert_ne!(other, slot);
    assert_eq!(slots.take(), None);
}

#[test]
fn what_was_found_is_held_with_its_generation() {
    let generation = Generation::new(9).expect("valid");
    let mut slots = Slots::new(3, &[held(1, generation)]);
    assert_eq!(slots.all(), [held(1, generation)]);
    assert_eq!((slots.usable(), slots.free()), (3, 2));
    assert!(slots.begin_read(1, generation, key(1)).is_some());
    assert!(
        slots.begin_read(1, generation, key(2)).is_none(),
        "another key"
    );
    slots.end_read(1);
    assert_eq!(slots.evict(1, generation).0, Eviction::Done);
    slots.freed(1);
    let taken: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
    assert!(taken.contains(&(1, generation.next())), "{taken:?}");
}
