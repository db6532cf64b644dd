//! A quiet decorator conforms; a loud one fails as it was told, and gives slots back.

use flexkv_block::{Checksum, Tier};
use tokio::time::Instant;

use super::*;
use crate::{BlockTier, HeapStagedTier, HeapTier, StagedFaults, conformance};

const LONG: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_quiet_staged_tier_conforms() {
    conformance::staged(|slots, bytes| {
        let inner = HeapStagedTier::new(slots, bytes);
        Arc::new(FaultyStagedTier::new(inner, Faults::new(1)))
    })
    .await;
}

/// A staged tier with `held` blocks of a memory, and their places.
async fn staged(
    held: u64,
    seed: u64,
) -> (HeapTier, FaultyStagedTier<HeapStagedTier>, Vec<Location>) {
    let memory = HeapTier::new(TierShape {
        tier: Tier::Host,
        slots: 8,
        block_bytes: 16,
    });
    let tier = FaultyStagedTier::new(HeapStagedTier::new(8, 16), Faults::new(seed));
    let mut places = Vec::new();
    for n in 0..held {
        let written = write(&memory, &tier, n).await;
        places.push(written.expect("a quiet tier takes it"));
    }
    (memory, tier, places)
}

async fn write(
    memory: &HeapTier,
    tier: &impl StagedTier,
    n: u64,
) -> Result<Location, WriteRefusal> {
    let slot = memory.reserve().expect("a free slot");
    let checksum = slot.bytes().checksum();
    let at = memory.commit(slot, BlockKey::from_u128(n.into()), checksum);
    let pin = memory.pin(at, BlockKey::from_u128(n.into()));
    let written = tier.write(pin.expect("it was just stored"), None).await;
    memory.evict(at);
    written
}

async fn read(
    memory: &HeapTier,
    tier: &impl StagedTier,
    at: Location,
    n: u64,
) -> Result<Checksum, ReadRefusal> {
    let into = memory.reserve().expect("a free slot");
    tier.read(at, BlockKey::from_u128(n.into()), into)
        .await
        .outcome
}

#[tokio::test(start_paused = true)]
async fn a_staged_tier_fails_as_it_is_told() {
    let told = |set: fn(&mut StagedFaults)| {
        let mut faults = StagedFaults::default();
        set(&mut faults);
        faults
    };
    for (faults, refusal, kept) in [
        (told(|it| it.busy = 1.0), ReadRefusal::Busy, true),
        (told(|it| it.stale = 1.0), ReadRefusal::Stale, true),
        (told(|it| it.corrupt = 1.0), ReadRefusal::Corrupt, false),
        (told(|it| it.failed = 1.0), ReadRefusal::Failed, false),
    ] {
        let (memory, tier, places) = staged(1, 1).await;
        tier.faults.set_staged(faults);
        assert_eq!(read(&memory, &tier, places[0], 0).await, Err(refusal));
        tier.faults.quiet();
        assert_eq!(
            read(&memory, &tier, places[0], 0).await.is_ok(),
            kept,
            "{refusal:?}"
        );
        assert_eq!(memory.free_slots(), 8, "slots come back");
        assert_eq!(tier.faults.injected(), 1);
    }
    let (memory, tier, _) = staged(0, 1).await;
    tier.faults.set_staged(told(|it| it.failed = 1.0));
    assert_eq!(write(&memory, &tier, 0).await, Err(WriteRefusal::Failed));
    tier.faults.set_staged(told(|it| it.busy = 1.0));
    assert_eq!(write(&memory, &tier, 0).await, Err(WriteRefusal::Busy));
    assert_eq!(tier.free_slots(), 8, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn a_staged_tier_is_as_slow_as_it_is_told_and_may_hang() {
    let (memory, tier, places) = staged(1, 1).await;
    tier.faults.set_staged(StagedFaults {
        latency: SECOND..=SECOND,
        ..StagedFaults::default()
    });
    let began = Instant::now();
    assert!(read(&memory, &tier, places[0], 0).await.is_ok());
    assert_eq!(began.elapsed(), SECOND);
    tier.faults.set_staged(StagedFaults {
        hang: 1.0,
        ..StagedFaults::default()
    });
    let hanging = tokio::time::timeout(LONG, read(&memory, &tier, places[0], 0));
    assert!(hanging.await.is_err());
    assert_eq!(memory.free_slots(), 8, "who gives up gets the slot back");
}
