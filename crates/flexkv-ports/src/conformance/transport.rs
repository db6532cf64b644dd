//! The suite for [`Transport`]: one owner, one reader, real or simulated wires between them.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{Checksum, Location};
use futures_util::future::{BoxFuture, join_all};
use tokio::time::timeout;

use super::{PATIENCE, block, eventually, key, put};
use crate::{BlockTier, Eviction, FetchOutcome, Fetched, Suspect, Transport, Want};

/// Slots of owner and reader.
const SLOTS: u32 = 128;
/// Bytes of the blocks of most cases.
const BYTES: usize = 10_001;
/// Long enough for any fetch that works.
const DEADLINE: Duration = Duration::from_secs(20);

/// An owner that serves a tier, and a transport that can reach it. Dropping it ends both.
pub trait TransportHarness {
    /// The owner's tier.
    fn owner(&self) -> Arc<dyn BlockTier>;

    /// Where the owner serves it.
    fn endpoint(&self) -> String;

    /// A tier whose slots the transport can fetch into; nothing else uses it.
    fn reader(&self) -> Arc<dyn BlockTier>;

    /// The transport under test.
    fn transport(&self) -> Arc<dyn Transport>;

    /// A well-formed endpoint of the transport's scheme at which nobody serves.
    fn dead_endpoint(&self) -> String;

    /// Damages the stored bytes of a block at the owner. The default flips a bit in the tier's
    /// memory.
    fn corrupt(&self, location: Location, key: flexkv_block::BlockKey) {
        let pin = self.owner().pin(location, key);
        let bytes = pin.expect("the block to damage is there").bytes().clone();
        let at = bytes.len() / 2;
        let mut byte = [0];
        bytes.read(at, &mut byte);
        bytes.write(at, &[byte[0] ^ 0x10]);
    }

    /// Waits for the next report at the owner; `None` if the transport carries none.
    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        None
    }
}

/// Checks a transport. `make(slots, block_bytes)` must give a new harness whose two tiers are empty
/// and have that size.
pub async fn transport<H: TransportHarness>(make: impl AsyncFn(u32, usize) -> H) {
    for bytes in [1, 4096, 65_537] {
        fetches_blocks_in_order(&make(SLOTS, bytes).await).await;
    }
    serves_the_scheme_of_its_endpoints(&make(1, BYTES).await);
    reports_each_block_on_its_own(&make(SLOTS, BYTES).await).await;
    gives_buffers_back_when_nobody_answers(&make(SLOTS, BYTES).await).await;
    answers_nothing_with_nothing(&make(1, BYTES).await).await;
    fetches_concurrently(&make(SLOTS, BYTES).await).await;
    serves_thousands_of_small_fetches(&make(SLOTS, 64).await).await;
    survives_cancelled_fetches(&make(SLOTS, BYTES).await).await;
    ends_its_pins_at_the_owner(&make(SLOTS, BYTES).await).await;
    never_mixes_up_blocks_that_are_replaced(&make(SLOTS, BYTES).await).await;
    tells_the_owner_what_came_damaged(&make(SLOTS, BYTES).await).await;
}

fn serves_the_scheme_of_its_endpoints(harness: &impl TransportHarness) {
    let scheme = format!("{}://", harness.transport().scheme());
    for endpoint in [harness.endpoint(), harness.dead_endpoint()] {
        assert!(endpoint.starts_with(&scheme), "{endpoint} is not {scheme}");
    }
}

async fn fetches_blocks_in_order(harness: &impl TransportHarness) {
    let mut stored = store(harness, 100);
    for count in [1, 100] {
        stored.reverse();
        let got = fetch(harness, &stored[..count]).await;
        assert_eq!(got.len(), count, "one entry per want");
        for ((_, n), fetched) in stored.iter().zip(&got) {
            check(fetched, *n);
        }
    }
    assert_all_free(harness, "buffers of finished fetches return").await;
}

async fn reports_each_block_on_its_own(harness: &impl TransportHarness) {
    let stored = store(harness, 6);
    let owner = harness.owner();
    assert_eq!(owner.evict(stored[1].0), Eviction::Done);
    let refilled = put(&*owner, 50);
    harness.corrupt(stored[4].0, key(stored[4].1));
    let wrong_generation = Location {
        generation: stored[2].0.generation.next(),
        ..stored[2].0
    };
    let wanted = [
        stored[0],
        stored[1],
        (wrong_generation, 2),
        (stored[3].0, 77),
        stored[4],
        stored[5],
        (refilled, 50),
    ];
    let got = fetch(harness, &wanted).await;
    check(&got[0], 0);
    assert_eq!(got[1].outcome, FetchOutcome::Stale, "evicted block");
    assert_eq!(got[2].outcome, FetchOutcome::Stale, "other generation");
    assert_eq!(got[3].outcome, FetchOutcome::Stale, "other key");
    assert_eq!(got[4].outcome, FetchOutcome::Corrupt, "damaged at owner");
    check(&got[5], 5);
    check(&got[6], 50);
    drop(got);
    assert_all_free(harness, "buffers return whatever the outcome").await;
}

async fn gives_buffers_back_when_nobody_answers(harness: &impl TransportHarness) {
    let wanted = store(harness, 5);
    let deadline = Duration::from_millis(300);
    let malformed = format!("{}://", harness.transport().scheme());
    for endpoint in [harness.dead_endpoint(), malformed] {
        let got = fetch_from(harness, &endpoint, &wanted, deadline).await;
        let outcomes: Vec<_> = got.iter().map(|fetched| fetched.outcome).collect();
        assert_eq!(outcomes, [FetchOutcome::Unreachable; 5], "at {endpoint}");
    }
    assert_all_free(harness, "buffers of an unreachable peer return").await;
    let got = fetch(harness, &wanted).await;
    check(&got[4], 4);
}

async fn answers_nothing_with_nothing(harness: &impl TransportHarness) {
    assert!(fetch(harness, &[]).await.is_empty());
    let dead = harness.dead_endpoint();
    let got = fetch_from(harness, &dead, &[], Duration::from_millis(300)).await;
    assert!(got.is_empty());
}

async fn fetches_concurrently(harness: &impl TransportHarness) {
    let stored = store(harness, 16);
    for _ in 0..4 {
        let batches = stored.chunks(3).map(|batch| fetch(harness, batch));
        let dead = harness.dead_endpoint();
        let failing = fetch_from(harness, &dead, &stored[..2], Duration::from_millis(300));
        let (fetched, failed) = tokio::join!(join_all(batches), failing);
        for ((_, n), fetched) in stored.iter().zip(fetched.iter().flatten()) {
            check(fetched, *n);
        }
        for fetched in failed {
            assert_eq!(fetched.outcome, FetchOutcome::Unreachable);
        }
    }
}

async fn serves_thousands_of_small_fetches(harness: &impl TransportHarness) {
    let stored = store(harness, 64);
    let reader = |number: usize| {
        let stored = &stored;
        async move {
            for round in 0..125 {
                let (location, n) = stored[(number * 31 + round * 7) % stored.len()];
                let got = fetch(harness, &[(location, n)]).await;
                check(&got[0], n);
            }
        }
    };
    join_all((0..16).map(reader)).await;
    assert_all_free(harness, "buffers of thousands of fetches return").await;
}

async fn survives_cancelled_fetches(harness: &impl TransportHarness) {
    let stored = store(harness, 40);
    let (transport, endpoint) = (harness.transport(), harness.endpoint());
    for polls in 0..6 {
        let wants = wants(harness, &stored);
        let mut fetching = transport.fetch(&endpoint, wants, DEADLINE);
        for _ in 0..polls {
            if futures_util::poll!(&mut fetching).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(fetching);
        assert_all_free(harness, "buffers of a cancelled fetch return").await;
        for ((_, n), fetched) in stored.iter().zip(fetch(harness, &stored).await) {
            check(&fetched, *n);
        }
    }
}

async fn ends_its_pins_at_the_owner(harness: &impl TransportHarness) {
    let stored = store(harness, 8);
    drop(fetch(harness, &stored).await);
    let (transport, endpoint) = (harness.transport(), harness.endpoint());
    let mut cancelled = transport.fetch(&endpoint, wants(harness, &stored), DEADLINE);
    let _ = futures_util::poll!(&mut cancelled);
    drop(cancelled);
    let owner = harness.owner();
    for (location, n) in stored {
        let evicted = || owner.evict(location) == Eviction::Done;
        eventually(&format!("block {n} can be evicted"), evicted).await;
    }
}

/// While the owner replaces its blocks, a reader gets the block it asked for or `Stale`.
async fn never_mixes_up_blocks_that_are_replaced(harness: &impl TransportHarness) {
    let owner = harness.owner();
    let mut stored = store(harness, 8);
    for round in 1..30 {
        let fetching = fetch(harness, &stored);
        let replacing = async {
            let mut new = stored.clone();
            for (location, n) in &mut new {
                tokio::task::yield_now().await;
                if owner.evict(*location) == Eviction::Done {
                    *n += 100 * round;
                    *location = put(&*owner, *n);
                }
            }
            new
        };
        let (got, new) = tokio::join!(fetching, replacing);
        for ((_, n), fetched) in stored.iter().zip(&got) {
            match fetched.outcome {
                FetchOutcome::Stale => {}
                _ => check(fetched, *n),
            }
        }
        stored = new;
    }
}

/// Reports of blocks that were fetched arrive at the owner, each once; those to nobody do no harm.
async fn tells_the_owner_what_came_damaged(harness: &impl TransportHarness) {
    let stored = store(harness, 3);
    let transport = harness.transport();
    let suspect = |(location, n): (Location, u64)| Suspect {
        location,
        key: key(n),
    };
    transport.report(&harness.dead_endpoint(), suspect(stored[0]));
    transport.report("no endpoint", suspect(stored[0]));
    if harness.reported().is_none() {
        return;
    }
    drop(fetch(harness, &stored).await);
    for block in &stored {
        transport.report(&harness.endpoint(), suspect(*block));
    }
    let mut told = Vec::new();
    for _ in &stored {
        let reported = harness.reported().expect("it carries reports");
        told.push(timeout(PATIENCE, reported).await.expect("a report in time"));
    }
    for block in stored.iter().copied() {
        assert!(told.contains(&suspect(block)), "{block:?}: {told:?}");
    }
    check(&fetch(harness, &stored).await[2], 2);
}

/// Stores blocks `0..count` at the owner.
fn store(harness: &impl TransportHarness, count: u64) -> Vec<(Location, u64)> {
    let owner = harness.owner();
    (0..count).map(|n| (put(&*owner, n), n)).collect()
}

fn wants(harness: &impl TransportHarness, blocks: &[(Location, u64)]) -> Vec<Want> {
    let reader = harness.reader();
    let want = |(location, n): &(Location, u64)| Want {
        location: *location,
        key: key(*n),
        into: reader.reserve().expect("the reader has a free slot"),
    };
    blocks.iter().map(want).collect()
}

async fn fetch(harness: &impl TransportHarness, blocks: &[(Location, u64)]) -> Vec<Fetched> {
    fetch_from(harness, &harness.endpoint(), blocks, DEADLINE).await
}

/// Fetches, and checks that the call ends and that the very buffers come back in order.
async fn fetch_from(
    harness: &impl TransportHarness,
    endpoint: &str,
    blocks: &[(Location, u64)],
    deadline: Duration,
) -> Vec<Fetched> {
    let wants = wants(harness, blocks);
    let given: Vec<_> = wants.iter().map(|want| want.into.slot()).collect();
    let transport = harness.transport();
    let fetching = transport.fetch(endpoint, wants, deadline);
    let fetched = timeout(deadline + PATIENCE, fetching).await;
    let fetched = fetched.unwrap_or_else(|_| panic!("no answer from {endpoint} in time"));
    let back: Vec<_> = fetched.iter().map(|fetched| fetched.into.slot()).collect();
    assert_eq!(back, given, "buffers that came back from {endpoint}");
    fetched
}

fn check(fetched: &Fetched, n: u64) {
    let bytes = block(n, fetched.into.bytes().len());
    assert_eq!(
        fetched.outcome,
        FetchOutcome::Fetched(Checksum::of(&bytes)),
        "block {n}"
    );
    assert_eq!(fetched.into.bytes().to_vec(), bytes, "bytes of block {n}");
}

async fn assert_all_free(harness: &impl TransportHarness, what: &str) {
    let reader = harness.reader();
    let slots = reader.shape().slots as usize;
    eventually(what, || reader.free_slots() == slots).await;
}
