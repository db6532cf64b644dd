//! Fetching: shared by loads, striped over owners, away from those that are slow, wrong or silent.

use super::*;

/// Blocks large enough that a slow owner's speed decides what one request asks for.
const LARGE: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

fn large() -> Spec {
    Spec {
        block_bytes: LARGE,
        ..Spec::default()
    }
}

impl TestNode {
    /// Takes blocks from `owner` at this speed.
    fn slow_from(&self, owner: &str, blocks_per_second: f64) {
        let bytes = blocks_per_second * self.tier.shape().block_bytes as f64;
        self.faults.set_speed(&HeapHub::endpoint(owner), bytes);
    }

    /// Begins to load all of `keys` that exist.
    async fn begin(&self, keys: &[BlockKey], limits: impl Into<LoadLimits>) -> Ticket {
        let hit = self.node.match_prefix(keys).await.expect("match");
        let load = self.node.load(hit.ticket, hit.blocks, limits.into()).await;
        load.expect("load");
        hit.ticket
    }

    async fn end(&self, ticket: Ticket) -> Loaded {
        let loaded = self.node.wait(ticket).await.expect("wait");
        self.node.release(ticket).await.expect("release");
        loaded
    }

    fn fetched_blocks(&self) -> u64 {
        self.counter("flexkv_fetched_bytes_total", "") / self.tier.shape().block_bytes as u64
    }

    /// Waits until nothing is fetched and no slot is being filled.
    async fn is_quiet(&self) {
        for _ in 0..100 {
            if self.node.shared.fetches.blocks() == 0 && self.tier.usage().filling == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{:?}", self.tier.usage());
    }
}

/// An owner of six blocks, and a reader that takes ten of them a second.
async fn pair(world: &World) -> (TestNode, TestNode, Vec<BlockKey>) {
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 6);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 6).await;
    b.slow_from("a", 10.0);
    (a, b, prompt)
}

#[tokio::test(start_paused = true)]
async fn loads_of_the_same_blocks_share_one_fetch() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    let began = Instant::now();
    let first = b.begin(&prompt, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let second = b.begin(&prompt, PATIENCE).await;
    let third = b.begin(&prompt[..4], PATIENCE).await;
    assert_eq!(b.end(first).await.remote, 6);
    assert_eq!(b.end(second).await.remote, 6);
    assert_eq!(b.end(third).await.remote, 4);
    assert_eq!(began.elapsed(), Duration::from_millis(600));
    assert_eq!(b.fetched_blocks(), 6, "each block came once");
    b.is_quiet().await;
    assert_eq!(b.tier.free_slots(), 14);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_cancelled_leaves_the_fetch_to_the_others() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    let began = Instant::now();
    let first = b.begin(&prompt, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let second = b.begin(&prompt, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    b.node.release(first).await.expect("release");
    assert_eq!(b.end(second).await.remote, 6);
    assert_eq!(
        began.elapsed(),
        Duration::from_millis(600),
        "not begun anew"
    );
    assert_eq!(b.fetched_blocks(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_last_load_that_is_cancelled_gives_the_fetch_up() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    let first = b.begin(&prompt, PATIENCE).await;
    let second = b.begin(&prompt, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    b.node.release(second).await.expect("release");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(b.tier.usage().filling, 6);
    b.node.release(first).await.expect("release");
    b.is_quiet().await;
    assert_eq!((b.tier.free_slots(), b.fetched_blocks()), (20, 0));
    assert_eq!(b.load(&prompt).await.remote, 6, "and can be fetched again");
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_fetch_keeps_its_own_deadline() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    let began = Instant::now();
    let patient = b.begin(&prompt, PATIENCE).await;
    let hasty = b.begin(&prompt, Duration::from_millis(200)).await;
    assert_eq!(b.end(hasty).await.blocks.len(), 0);
    assert_eq!(began.elapsed(), Duration::from_millis(200));
    assert_eq!(b.counter("flexkv_missed_blocks_total", "deadline"), 1);
    assert_eq!(b.end(patient).await.remote, 6);
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_hasty_fetch_goes_on_after_it() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    let hasty = b.begin(&prompt, Duration::from_millis(80)).await;
    let patient = b.begin(&prompt, PATIENCE).await;
    assert_eq!(b.end(hasty).await.blocks.len(), 0);
    assert_eq!(b.end(patient).await.remote, 6);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_leaves_the_leading_part() {
    let world = World::new();
    let (_a, b, prompt) = pair(&world).await;
    b.slow_from("a", 2.0);
    let began = Instant::now();
    let ticket = b.begin(&prompt, Duration::from_millis(2_900)).await;
    let loaded = b.end(ticket).await;
    assert!(began.elapsed() <= Duration::from_millis(2_900));
    assert_eq!(loaded.remote, 5, "two blocks a second");
    assert_eq!(b.counter("flexkv_missed_blocks_total", "deadline"), 1);
    assert!(
        b.node.shared.peers.table().excluded.is_empty(),
        "slow, not dead"
    );
    b.is_quiet().await;
}

/// How long a new reader takes for 1024 blocks of owners of these speeds, in blocks a second.
async fn time_to_load(speeds: &[f64]) -> Duration {
    time_to_load_into(1500, speeds).await
}

/// The same with so many slots.
async fn time_to_load_into(slots: u32, speeds: &[f64]) -> Duration {
    let world = World::new();
    let prompt = keys(1, 1024);
    let mut owners = Vec::new();
    for place in 0..speeds.len() {
        let owner = world.node_with(&format!("owner{place}"), 1024, large());
        owner.store(&prompt, 0).await;
        owners.push(owner);
    }
    let reader = world.node_with("reader", slots, large());
    reader.knows(speeds.len()).await;
    reader.sees(&prompt, 1024).await;
    for (place, speed) in speeds.iter().enumerate() {
        reader.slow_from(&format!("owner{place}"), *speed);
    }
    let began = Instant::now();
    let ticket = reader.begin(&prompt, Duration::from_secs(60)).await;
    let loaded = reader.end(ticket).await;
    assert_eq!(loaded.remote, 1024);
    let took = began.elapsed();
    reader.is_quiet().await;
    assert_eq!(
        reader.tier.free_slots(),
        slots as usize - 1024,
        "no slot leaks"
    );
    took
}

#[tokio::test(start_paused = true)]
async fn a_prefix_comes_from_all_its_owners_at_once() {
    let one = time_to_load(&[1000.0]).await;
    let four = time_to_load(&[1000.0; 4]).await;
    let ratio = one.as_secs_f64() / four.as_secs_f64();
    assert!(
        ratio > 3.6,
        "four owners are {ratio:.2} times as fast as one"
    );
    let uneven = time_to_load(&[3000.0, 1000.0]).await;
    let ratio = one.as_secs_f64() / uneven.as_secs_f64();
    assert!(
        ratio > 3.6,
        "4000 blocks a second are {ratio:.2} times 1000"
    );
}

#[tokio::test(start_paused = true)]
async fn an_owner_at_a_hundredth_of_the_speed_does_not_hold_the_others_up() {
    let three = time_to_load(&[1000.0; 3]).await;
    for slow in 0..4 {
        let mut speeds = [1000.0; 4];
        speeds[slow] = 10.0;
        let four = time_to_load(&speeds).await;
        let ratio = three.as_secs_f64() / four.as_secs_f64();
        assert!(ratio >= 0.9, "{ratio:.3} of the rate of the three others");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_owner_has_under_way_comes_from_others_even_if_no_slot_is_left() {
    let two = time_to_load_into(1024, &[1000.0; 2]).await;
    for speeds in [[1000.0, 10.0, 1000.0], [10.0, 1000.0, 1000.0]] {
        for slots in [1024, 1025, 1040, 1100] {
            let three = time_to_load_into(slots, &speeds).await;
            let ratio = two.as_secs_f64() / three.as_secs_f64();
            assert!(ratio >= 0.8, "{ratio:.3} of the rate of two, {slots} slots");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_falls_silent_does_not_hold_the_others_up() {
    let two = time_to_load(&[1000.0; 2]).await;
    let three = time_to_load(&[1000.0, 1e-9, 1000.0]).await;
    let ratio = two.as_secs_f64() / three.as_secs_f64();
    assert!(ratio >= 0.9, "{ratio:.3} of the rate of the two others");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_comes_from_another_owner_within_the_deadline() {
    let world = World::new();
    let prompt = keys(1, 200);
    let names = ["a", "b", "c"];
    let owners = names.map(|name| world.node_with(name, 256, large()));
    for owner in &owners {
        owner.store(&prompt, 0).await;
    }
    let reader = world.node_with("reader", 256, large());
    reader.knows(3).await;
    reader.sees(&prompt, 200).await;
    names.iter().for_each(|name| reader.slow_from(name, 500.0));
    let ticket = reader.begin(&prompt, PATIENCE).await;
    // One owner goes in the middle of its first piece.
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.hub.unregister("b");
    assert_eq!(reader.end(ticket).await.remote, 200);
}

#[tokio::test(start_paused = true)]
async fn owners_near_by_are_asked_before_others() {
    let world = World::new();
    let rack = |locality| Spec {
        locality,
        ..large()
    };
    let prompt = keys(1, 64);
    let far = world.node_with("far", 100, rack("east"));
    let near = world.node_with("near", 100, rack("west"));
    far.store(&prompt, 0).await;
    near.store(&prompt[..32], 0).await;
    let reader = world.node_with("reader", 100, rack("west"));
    reader.knows(2).await;
    reader.sees(&prompt, 64).await;
    reader.slow_from("far", 100.0);
    reader.slow_from("near", 100.0);
    let began = Instant::now();
    let ticket = reader.begin(&prompt[..32], PATIENCE).await;
    assert_eq!(reader.end(ticket).await.remote, 32);
    let alone = Duration::from_millis(320);
    assert_eq!(began.elapsed(), alone, "from the near one alone");
    let ticket = reader.begin(&prompt, PATIENCE).await;
    assert_eq!(
        reader.end(ticket).await.remote,
        32,
        "what it lacks, from far"
    );
}

#[tokio::test(start_paused = true)]
async fn hot_blocks_spread_as_replicas_and_are_then_read_from_all_of_them() {
    let world = World::new();
    let prompt = keys(1, 400);
    let owner = world.node_with("owner", 512, large());
    owner.store(&prompt, 0).await;
    let mut readers = Vec::new();
    let mut took = Vec::new();
    for round in 0..4 {
        let reader = world.node_with(&format!("reader{round}"), 512, large());
        reader.knows(round + 1).await;
        reader.sees(&prompt, 400).await;
        reader.slow_from("owner", 1000.0);
        (0..round).for_each(|r| reader.slow_from(&format!("reader{r}"), 1000.0));
        let began = Instant::now();
        let ticket = reader.begin(&prompt, PATIENCE).await;
        assert_eq!(reader.end(ticket).await.remote, 400);
        took.push(began.elapsed().as_secs_f64());
        readers.push(reader);
        // Until everybody knows of the new replica.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        took[0] / took[3] > 3.0,
        "each replica adds its rate: {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_told_of_a_damaged_block_looks_and_drops_it() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 4);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 4).await;
    let location = a.node.shared.core.find(&prompt[2..3])[0].expect("here");
    flip(&a.tier, location, prompt[2]);
    assert_eq!(b.load(&prompt).await.remote, 2);
    assert_eq!(b.counter("flexkv_corrupt_reports_total", "sent"), 1);
    b.sees(&prompt, 2).await;
    assert_eq!(a.node.blocks(), 3, "only the damaged block is gone");
    assert_eq!(a.counter("flexkv_corrupt_reports_total", "confirmed"), 1);
    assert_eq!(a.counter("flexkv_local_corrupt_blocks_total", ""), 1);
    assert_eq!(a.tier.free_slots(), 17);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_not_believed() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 4);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 4).await;
    b.faults.set_transport(TransportFaults {
        corrupt: 1.0,
        ..TransportFaults::default()
    });
    assert!(b.load(&prompt).await.blocks.is_empty());
    b.faults.quiet();
    // So is one of a block that was never there.
    let transport = HeapTransport::new(world.hub.clone());
    let location = a.node.shared.core.find(&prompt[..1])[0].expect("here");
    let key = keys(9, 1)[0];
    transport.report(&HeapHub::endpoint("a"), Suspect { location, key });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let sent = b.counter("flexkv_corrupt_reports_total", "sent");
    assert_eq!(sent, 4);
    let unfounded = a.counter("flexkv_corrupt_reports_total", "unfounded");
    assert_eq!(unfounded, sent + 1);
    assert_eq!(a.node.blocks(), 4);
    assert_eq!(b.load(&prompt).await.remote, 4);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_goes_even_while_it_is_read() {
    let world = World::new();
    let (a, b) = (world.node("a", 20), world.node("b", 20));
    let prompt = keys(1, 3);
    a.store(&prompt, 0).await;
    b.sees(&prompt, 3).await;
    let location = a.node.shared.core.find(&prompt[..1])[0].expect("here");
    let reader = a.tier.pin(location, prompt[0]).expect("there");
    flip(&a.tier, location, prompt[0]);
    assert!(b.load(&prompt).await.blocks.is_empty());
    b.sees(&prompt, 0).await;
    assert_eq!((a.node.blocks(), a.tier.free_slots()), (2, 17));
    drop(reader);
    a.node.shared.core.free_doomed(&*a.tier);
    assert_eq!(a.tier.free_slots(), 18);
}

/// Limits of an engine that computes so many blocks a second.
fn computing(blocks_per_second: f64) -> LoadLimits {
    LoadLimits {
        deadline: PATIENCE,
        recompute: Some(Duration::from_secs_f64(1.0 / blocks_per_second)),
    }
}

/// A reader of `blocks` blocks of one owner, from which it takes a thousand a second, and knows that.
async fn acquainted(world: &World, blocks: u64) -> (TestNode, TestNode, Vec<BlockKey>) {
    let owner = world.node_with("owner", 1024, large());
    let reader = world.node_with("reader", 1024, large());
    let (other, prompt) = (keys(7, 50), keys(1, blocks));
    owner.store(&other, 0).await;
    owner.store(&prompt, 0).await;
    reader.sees(&other, 50).await;
    reader.sees(&prompt, prompt.len()).await;
    reader.slow_from("owner", 1000.0);
    let ticket = reader.begin(&other, PATIENCE).await;
    assert_eq!(reader.end(ticket).await.remote, 50);
    (owner, reader, prompt)
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_takes_longer_than_computing_is_not_begun_and_is_counted() {
    let world = World::new();
    let (_owner, reader, prompt) = acquainted(&world, 200).await;
    let ticket = reader.begin(&prompt, computing(1500.0)).await;
    assert!(reader.end(ticket).await.blocks.is_empty());
    assert_eq!(reader.fetched_blocks(), 50, "nothing more");
    assert_eq!(reader.counter("flexkv_stopped_loads_total", ""), 1);
    assert_eq!(reader.counter("flexkv_stopped_blocks_total", ""), 200);
    assert_eq!(reader.counter("flexkv_missed_blocks_total", "recompute"), 1);
    let ticket = reader.begin(&prompt, computing(700.0)).await;
    assert_eq!(reader.end(ticket).await.remote, 200);
    assert_eq!(reader.counter("flexkv_stopped_loads_total", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn without_being_told_how_fast_the_engine_is_no_fetch_is_stopped() {
    let world = World::new();
    let (_owner, reader, prompt) = acquainted(&world, 60).await;
    reader.slow_from("owner", 20.0);
    let ticket = reader.begin(&prompt, PATIENCE).await;
    assert_eq!(reader.end(ticket).await.remote, 60);
    assert_eq!(reader.counter("flexkv_stopped_loads_total", ""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_is_stopped_when_its_owner_turns_slow_and_its_leading_part_is_kept() {
    let world = World::new();
    let (_owner, reader, prompt) = acquainted(&world, 400).await;
    let began = Instant::now();
    let ticket = reader.begin(&prompt, computing(500.0)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    reader.slow_from("owner", 1.0);
    let loaded = reader.end(ticket).await;
    // Computing all of it would take 0.8 s; the deadline is far away.
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(
        (80..200).contains(&loaded.blocks.len()),
        "{}",
        loaded.blocks.len()
    );
    let left = 400 - loaded.blocks.len() as u64;
    assert_eq!(reader.counter("flexkv_stopped_blocks_total", ""), left);
    reader.is_quiet().await;
    assert_eq!(reader.tier.usage().blocks, 50 + loaded.blocks.len());
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_silent_is_waited_for_only_as_long_as_computing_takes() {
    let world = World::new();
    let (_owner, reader, prompt) = acquainted(&world, 40).await;
    reader.slow_from("owner", 1e-9);
    let began = Instant::now();
    let ticket = reader.begin(&prompt, computing(500.0)).await;
    assert!(reader.end(ticket).await.blocks.is_empty());
    assert!(
        began.elapsed() < Duration::from_millis(250),
        "{:?}",
        began.elapsed()
    );
}
