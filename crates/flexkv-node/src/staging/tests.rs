//! Blocks on SSD, here and at peers: brought to memory, in time or not at all.

use std::sync::Arc;

use flexkv_ports::{
    BlockTier as _, Faults, FaultyStagedTier, HeapStagedTier, KvCache as _, Loaded, StagedFaults,
};

use super::*;
use crate::Admission;
use crate::tests::{BLOCK_BYTES, TestNode, World, keys};

/// A node with `prompt` on SSD alone.
async fn with_on_ssd(world: &World, name: &str, prompt: &[BlockKey]) -> TestNode {
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let node = world.staged(name, 8, &ssd, Admission::Computed);
    node.store(prompt, 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.store(&keys(99, 8), 0).await;
    let held = node.node.held(prompt);
    assert!(
        held.iter()
            .all(|at| at.is_some_and(|at| at.tier == Tier::Ssd))
    );
    node
}

#[tokio::test(start_paused = true)]
async fn a_block_that_only_a_peers_ssd_holds_is_fetched() {
    let world = World::new();
    let prompt = keys(1, 6);
    let a = with_on_ssd(&world, "a", &prompt).await;
    let b = world.node("b", 20);
    b.sees(&prompt, 6).await;
    let loaded = b.load(&prompt).await;
    assert_eq!((loaded.local, loaded.remote), (0, 6));
    assert_eq!(a.counter("flexkv_ssd_read_blocks_total", ""), 6);
    // The owner has it in memory now, and tells so.
    let tier = |at: Option<Location>| at.map(|at| at.tier);
    let held = a.node.held(&prompt);
    assert!(held.iter().all(|at| tier(*at) == Some(Tier::Host)));
}

/// A node whose device finds `prompt` when it is opened, and then does with reads what `faults` say.
async fn broken(world: &World, name: &str, prompt: &[BlockKey], faults: StagedFaults) -> TestNode {
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let writer = World::new().staged("writer", 20, &ssd, Admission::Computed);
    writer.store(prompt, 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let board = Faults::new(1);
    board.set_staged(faults);
    let device = FaultyStagedTier::new(ssd.reopened(), board);
    world.over(name, 20, Arc::new(device), Admission::Computed)
}

/// Never has time for a transfer.
fn busy() -> StagedFaults {
    StagedFaults {
        busy: 1.0,
        ..StagedFaults::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_a_counted_miss_and_comes_from_a_peer() {
    let prompt = keys(1, 6);
    let faults = StagedFaults::default;
    let (failed, corrupt, stale) = (1.0, 1.0, 1.0);
    for (faults, reason, kept) in [
        (StagedFaults { failed, ..faults() }, "read", 0),
        (
            StagedFaults {
                corrupt,
                ..faults()
            },
            "corrupt",
            0,
        ),
        (StagedFaults { stale, ..faults() }, "stale", 0),
        (busy(), "busy", 6),
    ] {
        let world = World::new();
        let a = broken(&world, "a", &prompt, faults.clone()).await;
        assert_eq!(a.found(&prompt).await, 6);
        assert!(a.load(&prompt).await.blocks.is_empty());
        assert_eq!(a.counter("flexkv_ssd_failures_total", reason), 6);
        assert_eq!(a.found(&prompt).await, kept, "{reason}");
        assert_eq!(a.tier.free_slots(), 20, "no slot leaks");

        let world = World::new();
        let a = broken(&world, "a", &prompt, faults.clone()).await;
        let b = world.node("b", 20);
        b.store(&prompt, 0).await;
        a.knows(1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let loaded = a.load(&prompt).await;
        assert_eq!((loaded.local, loaded.remote), (0, 6), "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_hangs_costs_no_more_than_the_deadline() {
    let prompt = keys(1, 6);
    let hangs = StagedFaults {
        hang: 1.0,
        ..StagedFaults::default()
    };
    let world = World::new();
    let a = broken(&world, "a", &prompt, hangs).await;
    let (node, began) = (&a.node, Instant::now());
    let hit = node.match_prefix(&prompt).await.expect("match");
    let deadline = Duration::from_millis(300);
    node.load(hit.ticket, 6, deadline.into())
        .await
        .expect("load");
    let Loaded { blocks, .. } = node.wait(hit.ticket).await.expect("wait");
    assert!(blocks.is_empty());
    assert!(began.elapsed() < 2 * deadline, "{:?}", began.elapsed());
    node.release(hit.ticket).await.expect("release");
    assert_eq!(a.counter("flexkv_missed_blocks_total", "deadline"), 1);

    // The same for a peer.
    let b = world.node("b", 20);
    b.sees(&prompt, 6).await;
    let began = Instant::now();
    assert!(b.load(&prompt).await.blocks.is_empty());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "its load's deadline"
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_stores_again_what_only_a_broken_device_has() {
    let prompt = keys(1, 6);
    let world = World::new();
    let a = broken(&world, "a", &prompt, busy()).await;
    a.store(&prompt, 0).await;
    assert_eq!(a.load(&prompt).await.local, 6);
}

#[tokio::test(start_paused = true)]
async fn a_replica_in_memory_is_preferred_to_one_on_ssd() {
    let world = World::new();
    let prompt = keys(1, 6);
    let a = with_on_ssd(&world, "a", &prompt).await;
    let b = world.node("b", 20);
    // The middle of the prompt lies in memory elsewhere; the rest is on SSD alone.
    b.store(&prompt[..4], 2).await;
    let c = world.node("c", 20);
    c.knows(2).await;
    c.sees(&prompt, 6).await;
    assert_eq!(c.load(&prompt).await.remote, 6);
    assert_eq!(a.counter("flexkv_ssd_read_blocks_total", ""), 4);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_cannot_stage_leaves_ssd_to_one_that_can() {
    let world = World::new();
    let prompt = keys(1, 6);
    let a = with_on_ssd(&world, "a", &prompt).await;
    let (b, near_asked) = world.with_near("b", 20);
    b.sees(&prompt, 6).await;
    assert_eq!(b.load(&prompt).await.remote, 6);
    assert_eq!(near_asked(), 0, "it reads memory only");
    assert_eq!(a.counter("flexkv_ssd_read_blocks_total", ""), 6);
}
