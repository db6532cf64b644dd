//! The two steps, on one shard and on several, and the session for threads without async.

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_engine::{Attachment, EngineClient, ServerConfig, TwoStep};
use flexkv_ports::{CacheError, Filled, KvCache as _, MemorySlice, Ticket};

use crate::cache::{BLOCK_BYTES, NAMESPACE};
use crate::support::{Node, block, eventually, folder, keys, socket_in, store};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

/// Keys of the same prompt on another shard.
fn shard(number: u128, blocks: std::ops::Range<u128>) -> Vec<BlockKey> {
    blocks
        .map(|n| BlockKey::from_u128(number << 96 | n << 64))
        .collect()
}

/// Stores blocks of a shard; their slots.
async fn store_shard(client: &EngineClient, keys: &[BlockKey]) -> Vec<MemorySlice> {
    let grant = client.store(keys, 0).await.expect("store");
    let slots: Vec<_> = grant.slots.into_iter().flatten().collect();
    let bytes = block(7);
    let checksum = Checksum::of(&bytes);
    slots.iter().for_each(|slot| slot.write(0, &bytes));
    let filled = (0..keys.len()).map(|index| Filled { index, checksum });
    let filled: Vec<_> = filled.collect();
    client.commit(grant.ticket, &filled).await.expect("commit");
    client.release(grant.ticket).await.expect("release");
    slots
}

async fn steps(node: &Node) -> (std::sync::Arc<EngineClient>, TwoStep) {
    let client = std::sync::Arc::new(node.attach().await);
    (client.clone(), TwoStep::new(client))
}

#[tokio::test]
async fn a_prefix_counts_as_far_as_all_shards_have_it() {
    let node = Node::start(16);
    let (client, steps) = steps(&node).await;
    let prompt: Vec<_> = (0..3).map(|number| shard(number, 0..5)).collect();
    for (number, stored) in [4, 2, 3].into_iter().enumerate() {
        store_shard(&client, &prompt[number][..stored]).await;
    }
    let hit = steps.match_shards(&prompt).await.expect("match");
    assert_eq!((hit.blocks, hit.local), (2, 2));
    steps.launch_shards(&hit, 5, LONG).await.expect("launch");
    let loaded = steps.wait_shards(&hit, LONG).await.expect("wait");
    let loaded = loaded.expect("in time");
    assert_eq!(loaded.blocks, 2);
    for (keys, shard) in prompt.iter().zip(&loaded.shards) {
        let found: Vec<_> = shard.blocks.iter().map(|view| view.key).collect();
        assert_eq!(found, keys[..2]);
    }
    assert_eq!(node.cache.pins(), 6, "what no shard's engine uses is free");
    steps.cancel_shards(&hit).await.expect("cancel");
    assert_eq!((node.cache.tickets(), node.cache.pins()), (0, 0));
}

#[tokio::test]
async fn a_shard_that_brings_less_shortens_all() {
    let node = Node::start(8);
    let (client, steps) = steps(&node).await;
    let prompt = vec![shard(1, 0..3), shard(2, 0..3)];
    store_shard(&client, &prompt[0]).await;
    let slots = store_shard(&client, &prompt[1]).await;
    slots[1].write(0, &[!block(7)[0]]);
    let hit = steps.match_shards(&prompt).await.expect("match");
    assert_eq!(hit.blocks, 3);
    steps.launch_shards(&hit, 3, LONG).await.expect("launch");
    let loaded = steps.poll_shards(&hit).await.expect("poll");
    let loaded = loaded.expect("loads end at once");
    assert_eq!(loaded.blocks, 1);
    let lengths: Vec<_> = loaded.shards.iter().map(|one| one.blocks.len()).collect();
    assert_eq!(lengths, [1, 1]);
    steps.cancel_shards(&hit).await.expect("cancel");
}

#[tokio::test]
async fn all_shards_are_waited_for_until_the_deadline() {
    let node = Node::start(8);
    let (client, steps) = steps(&node).await;
    let prompt = vec![shard(1, 0..2), shard(2, 0..2)];
    for keys in &prompt {
        store_shard(&client, keys).await;
    }
    node.cache.set_loading(false);
    let hit = steps.match_shards(&prompt).await.expect("match");
    steps.launch_shards(&hit, 2, LONG).await.expect("launch");
    assert!(steps.poll_shards(&hit).await.expect("poll").is_none());
    assert!(
        steps
            .wait_shards(&hit, SHORT)
            .await
            .expect("wait")
            .is_none()
    );
    node.cache.set_loading(true);
    let loaded = steps.wait_shards(&hit, LONG).await.expect("wait");
    assert_eq!(loaded.expect("in time").blocks, 2);
    steps.cancel_shards(&hit).await.expect("cancel");
    steps.cancel_shards(&hit).await.expect("again");
}

#[tokio::test]
async fn a_shard_that_fails_leaves_no_ticket_of_the_others() {
    let node = Node::start(4);
    let (_, steps) = steps(&node).await;
    let shards = vec![shard(1, 0..2), shard(2, 0..2_000_000), shard(3, 0..2)];
    let error = steps.match_shards(&shards).await.expect_err("too many");
    assert!(matches!(error, CacheError::Invalid { .. }), "{error}");
    assert_eq!(node.cache.tickets(), 0);
}

#[tokio::test]
async fn no_shards_have_nothing() {
    let node = Node::start(1);
    let (_, steps) = steps(&node).await;
    let hit = steps.match_shards(&[]).await.expect("match");
    assert_eq!((hit.blocks, hit.local), (0, 0));
    let loaded = steps.poll_shards(&hit).await.expect("poll");
    assert_eq!(loaded.expect("nothing to wait for").blocks, 0);
}

#[tokio::test]
async fn waits_that_were_given_up_do_not_add_up() {
    let node = Node::start(4);
    let (client, steps) = steps(&node).await;
    store(&client, 0..2).await;
    node.cache.set_loading(false);
    let hit = steps.match_prefix(&keys(0..2)).await.expect("match");
    steps.launch(hit.ticket, 2, LONG).await.expect("launch");
    let most = ServerConfig::default().max_waits;
    for _ in 0..2 * most {
        let waited = steps.wait(hit.ticket, Duration::ZERO).await;
        assert!(waited.expect("one more").is_none());
    }
    node.cache.set_loading(true);
    let loaded = steps.wait(hit.ticket, LONG).await.expect("wait");
    assert_eq!(loaded.expect("in time").blocks.len(), 2);
    steps.cancel(hit.ticket).await.expect("cancel");
    let error = steps.wait(hit.ticket, LONG).await.expect_err("cancelled");
    assert!(matches!(error, CacheError::UnknownTicket { .. }), "{error}");
}

#[tokio::test]
async fn cancelling_what_is_not_known_is_no_error() {
    let node = Node::start(4);
    let (client, steps) = steps(&node).await;
    store(&client, 0..2).await;
    steps.cancel(Ticket(12345)).await.expect("never given");
    let hit = steps.match_prefix(&keys(0..2)).await.expect("match");
    steps.cancel(hit.ticket).await.expect("once");
    steps.cancel(hit.ticket).await.expect("twice");
    assert_eq!(node.cache.tickets(), 0);
}

#[tokio::test]
async fn a_prefetch_ends_by_itself() {
    let node = Node::start(4);
    let (client, steps) = steps(&node).await;
    store(&client, 0..2).await;
    node.cache.set_loading(false);
    let held = steps.prefetch(&keys(0..2), LONG).await.expect("prefetch");
    let cancelled = steps.prefetch(&keys(0..2), LONG).await.expect("prefetch");
    assert_eq!(node.cache.tickets(), 2, "under way");
    steps.cancel(cancelled).await.expect("cancel");
    assert_eq!(node.cache.tickets(), 1);
    node.cache.set_loading(true);
    eventually("no ticket is held", || node.cache.tickets() == 0).await;
    steps.cancel(held).await.expect("it holds nothing");
    steps.prefetch(&keys(9..12), LONG).await.expect("unknown");
    assert_eq!(node.cache.tickets(), 0);
}

#[tokio::test]
async fn very_many_prefetches_are_dropped_hints() {
    let node = Node::start(4);
    let (client, steps) = steps(&node).await;
    store(&client, 0..1).await;
    node.cache.set_loading(false);
    for _ in 0..300 {
        steps.prefetch(&keys(0..1), LONG).await.expect("prefetch");
    }
    assert_eq!(node.cache.tickets(), 256);
    node.cache.set_loading(true);
    eventually("no ticket is held", || node.cache.tickets() == 0).await;
}

/// A thread without async: attaches before the node is there, and outlives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_waits_for_its_node() {
    let folder = folder(0o700);
    let path = folder.path().join("node.sock");
    let attaching = std::thread::spawn({
        let path = path.clone();
        move || Attachment::attach(path, LONG).expect("attach")
    });
    tokio::time::sleep(SHORT).await;
    let cache = crate::cache::TinyCache::new(4);
    let arena = cache.arena();
    let server = flexkv_engine::EngineServer::start(path, cache, arena, Default::default());
    let server = server.expect("the service starts");
    let joined = tokio::task::spawn_blocking(|| attaching.join().expect("attached"));
    let attached = joined.await.expect("no panic");
    assert_eq!(attached.namespace(), NAMESPACE);
    assert_eq!(attached.block_bytes(), BLOCK_BYTES);
    assert!(attached.is_attached());
    server.shutdown().await;
    let after = std::thread::spawn(move || {
        let steps = attached.steps().expect("this process");
        let error = attached.block_on(steps.match_prefix(&keys(0..1)));
        (
            error.expect_err("the node has gone"),
            attached.is_attached(),
        )
    });
    let (error, attached) = tokio::task::spawn_blocking(|| after.join().expect("no panic"))
        .await
        .expect("no panic");
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    assert!(!attached);
}

#[test]
fn a_node_that_does_not_come_is_named() {
    let folder = folder(0o700);
    let path = socket_in(&folder);
    let error = Attachment::attach(&path, SHORT).expect_err("nobody there");
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("node.sock"), "{error}");
}

#[tokio::test]
async fn async_code_is_not_blocked() {
    let error = Attachment::attach("/nonexistent", LONG).expect_err("async");
    assert!(matches!(error, CacheError::Invalid { .. }), "{error}");
}
