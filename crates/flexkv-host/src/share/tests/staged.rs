//! Blocks that the owner brings to memory first.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use flexkv_ports::{Eviction, ReadSlot, Stager};

use super::*;

/// Brings any block whose number is below `most`, after `time`.
struct Shelf {
    tier: HostTier,
    most: u8,
    time: Duration,
    asked: AtomicUsize,
    /// Whether someone gave up before the blocks were there.
    given_up: Arc<AtomicBool>,
    brought: Arc<Mutex<Vec<Location>>>,
}

/// Notes that it was dropped.
struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    fn was_done(&mut self) {
        self.0 = Arc::default();
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stager for Shelf {
    fn stage(
        &self,
        wants: Vec<(Location, BlockKey)>,
        deadline: Duration,
    ) -> BoxFuture<'static, Vec<Option<ReadSlot>>> {
        assert!(deadline <= DEADLINE, "{deadline:?}");
        self.asked.fetch_add(wants.len(), Ordering::Relaxed);
        let (tier, most, time) = (self.tier.clone(), self.most, self.time);
        let mut ended = GivenUp(self.given_up.clone());
        let brought = self.brought.clone();
        Box::pin(async move {
            tokio::time::sleep(time).await;
            ended.was_done();
            let bring = |(location, key): (Location, BlockKey)| {
                assert_eq!(location.tier, Tier::Ssd);
                let n = (0..most).find(|n| self::key(*n) == key)?;
                let mut brought = brought.lock().expect("no panic");
                if tier.free_slots() == 0 {
                    brought.retain(|at| tier.evict(*at) == Eviction::Pinned);
                }
                let slot = tier.reserve()?;
                let bytes = vec![n; tier.shape().block_bytes];
                slot.bytes().write(0, &bytes);
                let location = tier.commit(slot, key, Checksum::of(&bytes));
                brought.push(location);
                tier.pin(location, key).ok()
            };
            wants.into_iter().map(bring).collect()
        })
    }
}

struct World {
    tier: HostTier,
    shelf: Arc<Shelf>,
    server: ShareServer,
    reader: Reader,
}

/// An owner with `slots` slots who brings blocks `0..most` from its shelf in `time`.
fn world(slots: u32, most: u8, time: Duration) -> World {
    let tier = arena(slots, BYTES);
    let server = share(&tier);
    let shelf = Arc::new(Shelf {
        tier: tier.clone(),
        most,
        time,
        asked: AtomicUsize::new(0),
        given_up: Arc::default(),
        brought: Arc::default(),
    });
    server.stage_with(shelf.clone());
    World {
        tier,
        shelf,
        server,
        reader: Reader::new(config(BYTES)),
    }
}

impl World {
    async fn fetch(&self, blocks: &[(Location, u8)]) -> Vec<FetchOutcome> {
        self.reader.fetch(self.server.endpoint(), blocks).await
    }

    /// Waits until nobody holds what was brought.
    async fn eventually_lets_go(&self) {
        let brought = std::mem::take(&mut *self.shelf.brought.lock().expect("no panic"));
        for location in brought {
            eventually("a block that was brought is held no more", || {
                self.tier.evict(location) == Eviction::Done
            })
            .await;
        }
    }
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("not so: {what}");
}

fn on_ssd(n: u8) -> (Location, u8) {
    let location = Location {
        tier: Tier::Ssd,
        slot: SlotId(n.into()),
        generation: Generation::FIRST,
    };
    (location, n)
}

#[tokio::test]
async fn blocks_of_a_slower_tier_come_beside_those_in_memory_each_in_its_place() {
    let world = world(64, 60, Duration::ZERO);
    let stored = store(&world.tier, 4);
    let mut blocks = Vec::new();
    for (n, at) in (40..).zip(&stored) {
        blocks.extend([*at, on_ssd(n)]);
    }
    blocks.push(on_ssd(99));
    let outcomes = world.fetch(&blocks).await;
    assert!(all_fetched(&outcomes[..8]), "{outcomes:?}");
    assert_eq!(outcomes[8], FetchOutcome::Stale, "nobody has it");
    assert_eq!(world.shelf.asked.load(Ordering::Relaxed), 5);
    world.eventually_lets_go().await;
}

#[tokio::test]
async fn what_is_not_brought_in_time_is_given_up_and_the_rest_comes() {
    let world = world(64, 60, Duration::from_secs(3600));
    let stored = store(&world.tier, 1);
    let want = |(location, n): (Location, u8)| Want {
        location,
        key: key(n),
        into: world.reader.tier.reserve().expect("a free slot"),
    };
    let wants = [on_ssd(40), stored[0]].map(want).into();
    let short = Duration::from_millis(200);
    let transport = &world.reader.transport;
    let fetched = transport.fetch(world.server.endpoint(), wants, short).await;
    let outcomes: Vec<_> = fetched.iter().map(|fetched| fetched.outcome).collect();
    assert_eq!(outcomes[0], FetchOutcome::Unreachable);
    assert!(all_fetched(&outcomes[1..]));
    eventually("the owner stops bringing it", || {
        world.shelf.given_up.load(Ordering::Relaxed)
    })
    .await;
}

#[tokio::test]
async fn a_fetch_that_is_given_up_ends_at_the_owner_and_others_go_on() {
    let world = world(64, 60, Duration::from_secs(3600));
    for _ in 0..3 {
        let wait = Duration::from_millis(100);
        let blocks = [on_ssd(40)];
        let fetch = world.fetch(&blocks);
        assert!(tokio::time::timeout(wait, fetch).await.is_err());
        eventually("the owner stops bringing it", || {
            world.shelf.given_up.swap(false, Ordering::Relaxed)
        })
        .await;
    }
    assert_eq!(world.shelf.asked.load(Ordering::Relaxed), 3);
    assert_eq!(world.reader.tier.free_slots(), 64, "buffers come back");
    let stored = store(&world.tier, 4);
    assert!(all_fetched(&world.fetch(&stored).await), "on the same link");
    assert_eq!(world.server.readers(), 1);
}

#[tokio::test]
async fn many_fetches_share_what_may_be_held() {
    // Four blocks may be held at a time, less than one fetch wants.
    let world = world(16, 40, Duration::from_millis(1));
    let blocks: Vec<_> = (0..6).map(on_ssd).collect();
    for _ in 0..8 {
        let outcomes = tokio::join!(
            world.fetch(&blocks),
            world.fetch(&blocks),
            world.fetch(&blocks),
            world.fetch(&blocks),
        );
        let outcomes = [outcomes.0, outcomes.1, outcomes.2, outcomes.3].concat();
        assert!(all_fetched(&outcomes), "{outcomes:?}");
        world.eventually_lets_go().await;
    }
}

#[tokio::test]
async fn an_owner_that_brings_nothing_has_none_of_it() {
    let tier = arena(4, BYTES);
    let server = share(&tier);
    let reader = Reader::new(config(BYTES));
    let outcomes = reader.fetch(server.endpoint(), &[on_ssd(1)]).await;
    assert_eq!(outcomes, [FetchOutcome::Stale]);
}

#[tokio::test]
async fn an_owner_that_goes_meanwhile_leaves_nobody_waiting() {
    let World {
        server,
        reader,
        shelf,
        ..
    } = world(64, 60, Duration::from_secs(3600));
    let endpoint = server.endpoint().to_owned();
    let goes = async {
        eventually("it is asked", || shelf.asked.load(Ordering::Relaxed) > 0).await;
        drop(server);
    };
    let blocks = [on_ssd(40)];
    let (outcomes, ()) = tokio::join!(reader.fetch(&endpoint, &blocks), goes);
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
}
