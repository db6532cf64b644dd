//! What is written to the staged tier, and what of it is found after a restart.

use flexkv_block::Tier;
use flexkv_ports::{BlockTier as _, HeapStagedTier, StagedTier as _};

use super::*;
use crate::tests::{BLOCK_BYTES, TestNode, World, flip, keys};

/// Prefixes that no two tests share need not be told apart.
fn tiers_of(node: &TestNode, keys: &[BlockKey]) -> Vec<Option<Tier>> {
    let held = node.node.held(keys);
    held.iter().map(|at| at.map(|at| at.tier)).collect()
}

/// Lets the task write what it has to.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn what_memory_has_no_room_for_is_loaded_from_ssd() {
    let world = World::new();
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let a = world.staged("a", 8, &ssd, Admission::Computed);
    let (old, new) = (keys(1, 6), keys(2, 8));
    a.store(&old, 0).await;
    settle().await;
    assert_eq!(tiers_of(&a, &old), [Some(Tier::Host); 6], "the faster tier");
    a.store(&new, 0).await;
    settle().await;
    assert_eq!(tiers_of(&a, &old), [Some(Tier::Ssd); 6]);
    assert_eq!(a.found(&old).await, 6);
    let loaded = a.load(&old).await;
    assert_eq!((loaded.local, loaded.remote), (6, 0));
    assert_eq!(tiers_of(&a, &old), [Some(Tier::Host); 6], "promoted");
    assert_eq!(a.counter("flexkv_hit_blocks_total", "ssd"), 6);
    assert_eq!(a.counter("flexkv_ssd_written_blocks_total", ""), 14);
    assert_eq!(a.counter("flexkv_ssd_read_blocks_total", ""), 6);
    assert_eq!(ssd.free_slots(), 40 - 14, "nothing was written twice");
}

#[tokio::test(start_paused = true)]
async fn peers_learn_that_a_block_moved_and_that_it_went() {
    let world = World::new();
    let ssd = HeapStagedTier::new(8, BLOCK_BYTES);
    let a = world.staged("a", 4, &ssd, Admission::Computed);
    let b = world.node("b", 20);
    let old = keys(1, 4);
    a.store(&old, 0).await;
    settle().await;
    a.store(&keys(2, 4), 0).await;
    b.sees(&old, 4).await;
    a.store(&keys(3, 4), 0).await;
    settle().await;
    a.store(&keys(4, 4), 0).await;
    b.sees(&old, 0).await;
    assert!(a.counter("flexkv_evicted_blocks_total", "ssd") >= 4);
    b.sees(&keys(4, 4), 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_publishes_what_its_ssd_kept() {
    let world = World::new();
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let a = world.staged("a", 20, &ssd, Admission::Computed);
    let b = world.node("b", 20);
    let prompt = keys(1, 6);
    a.store(&prompt, 0).await;
    settle().await;
    world.hub.unregister("a");
    drop(a);
    b.sees(&prompt, 0).await;
    let a = world.staged("a", 20, &ssd.reopened(), Admission::Computed);
    assert_eq!(a.found(&prompt).await, 6);
    b.sees(&prompt, 6).await;
    assert_eq!(a.counter("flexkv_ssd_recovered_blocks_total", ""), 6);
    assert_eq!(b.load(&prompt).await.remote, 6);
    assert_eq!(a.load(&prompt).await.local, 6);
    assert_eq!(
        a.counter("flexkv_ssd_written_blocks_total", ""),
        0,
        "it was there"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_writes_what_it_fetched_only_if_told_to() {
    for (admission, written) in [(Admission::Computed, 0), (Admission::All, 6)] {
        let world = World::new();
        let a = world.node("a", 20);
        let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
        let b = world.staged("b", 20, &ssd, admission);
        let prompt = keys(1, 6);
        a.store(&prompt, 0).await;
        b.sees(&prompt, 6).await;
        assert_eq!(b.load(&prompt).await.remote, 6);
        settle().await;
        let count = b.counter("flexkv_ssd_written_blocks_total", "");
        assert_eq!(count, written, "{admission:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_used_again_is_written_if_told_so() {
    let world = World::new();
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let a = world.staged("a", 20, &ssd, Admission::Reused);
    let (once, twice) = (keys(1, 5), keys(2, 5));
    a.store(&once, 0).await;
    a.store(&twice, 0).await;
    settle().await;
    assert_eq!(ssd.free_slots(), 40);
    a.load(&twice).await;
    a.load(&twice).await;
    settle().await;
    assert_eq!(ssd.free_slots(), 35);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_changed_in_memory_are_served_from_nowhere() {
    let world = World::new();
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let a = world.staged("a", 20, &ssd, Admission::Computed);
    let prompt = keys(1, 3);
    a.store(&prompt, 0).await;
    let location = a.node.held(&prompt)[1].expect("here");
    flip(&a.tier, location, prompt[1]);
    settle().await;
    assert_eq!(ssd.free_slots(), 37, "written without a look");
    assert_eq!(a.load(&prompt).await.local, 1);
    assert_eq!(a.counter("flexkv_local_corrupt_blocks_total", ""), 1);
    assert_eq!(a.node.held(&prompt)[1], None, "gone from memory");
    assert_eq!(ssd.free_slots(), 38, "and from the SSD");
}

#[tokio::test(start_paused = true)]
async fn a_reset_empties_the_ssd_too() {
    let world = World::new();
    let ssd = HeapStagedTier::new(10, BLOCK_BYTES);
    let a = world.staged("a", 4, &ssd, Admission::Computed);
    a.store(&keys(1, 4), 0).await;
    settle().await;
    a.store(&keys(2, 4), 0).await;
    settle().await;
    assert_eq!(a.node.shared.core.reset(&*a.tier), 8);
    assert_eq!((ssd.free_slots(), a.tier.free_slots()), (10, 4));
    assert_eq!(a.node.blocks(), 0);
}

#[test]
fn a_backlog_holds_so_many_and_counts_what_it_dropped() {
    let mut backlog = Backlog::new(Some(Admission::Computed), 3);
    let keys = keys(1, 5);
    assert!(keys.iter().all(|key| backlog.push(*key)));
    assert!(!backlog.push(keys[4]), "it waits already");
    assert_eq!(backlog.missed, 2);
    let left: Vec<_> = std::iter::from_fn(|| backlog.pop()).collect();
    assert_eq!(left, keys[2..]);
    assert!(!Backlog::new(None, 3).wants(Origin::Stored));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_gives_up_first_what_was_used_longest_ago() {
    let ssd = HeapStagedTier::new(40, BLOCK_BYTES);
    let a = World::new().staged("a", 20, &ssd, Admission::Computed);
    let (first, second) = (keys(1, 6), keys(2, 6));
    for prompt in [&first, &second] {
        a.store(prompt, 0).await;
        settle().await;
    }
    a.load(&first).await;
    drop(a);
    let a = World::new().staged("a", 8, &ssd.reopened(), Admission::Computed);
    for prompt in 3..7 {
        a.store(&keys(prompt, 8), 0).await;
        settle().await;
    }
    assert_eq!(a.found(&first).await, 6, "written first, but used last");
    let left = a.found(&second).await;
    assert!(left < 6, "its end went first");
}
