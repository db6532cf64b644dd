//! Packing into a word and back.

use super::*;

#[test]
fn words_round_trip_and_are_never_zero() {
    for (slot, generation) in [(0, 1), (u32::MAX, Generation::MAX), (77, 12345)] {
        for tier in [Tier::Host, Tier::Ssd] {
            let generation = Generation::new(generation).expect("in range");
            let location = Location {
                tier,
                slot: SlotId(slot),
                generation,
            };
            assert_ne!(location.to_word(), 0);
            assert_eq!(Location::from_word(location.to_word()), Some(location));
        }
    }
}

#[test]
fn zero_unknown_tier_and_generation_zero_are_refused() {
    assert_eq!(Location::from_word(0), None);
    assert_eq!(Location::from_word((9 << 60) | (1 << 32)), None);
    assert_eq!(Location::from_word(1 << 60), None);
}

#[test]
fn generations_wrap_past_zero() {
    assert_eq!(
        Generation::new(Generation::MAX).expect("in range").next(),
        Generation::FIRST
    );
    assert_eq!(Generation::FIRST.next().get(), 2);
}
