//! What a lookup brings to memory before the load asks, and what it leaves alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flexkv_block::{BlockKey, Location, Tier};
use flexkv_ports::{
    BlockTier as _, BoxFuture, Eviction, HeapStagedTier, KvCache as _, ReadSlot, StagedBlock,
    StagedRead, StagedTier, TierShape, WriteRefusal, WriteSlot,
};
use tokio::sync::oneshot;

use crate::Admission;
use crate::tests::{BLOCK_BYTES, TestNode, World, keys};

/// A read that was begun, and how to end it.
type Begun = (BlockKey, oneshot::Sender<()>);

/// A device whose reads end when the test says so, in the order in which they were begun.
#[derive(Clone)]
struct Held {
    inner: HeapStagedTier,
    reads: Arc<Mutex<VecDeque<Begun>>>,
}

impl Held {
    /// Keys of the reads that were begun and have not ended.
    fn begun(&self) -> Vec<BlockKey> {
        let reads = self.reads.lock().unwrap();
        let running = reads.iter().filter(|(_, end)| !end.is_closed());
        running.map(|(key, _)| *key).collect()
    }

    /// Ends the reads that were begun, and those that begin then, until there are no more.
    async fn finish(&self) {
        settle().await;
        loop {
            let next = self.reads.lock().unwrap().pop_front();
            let Some((_, end)) = next else { return };
            // Nobody listens to one that was given up.
            let _ = end.send(());
            settle().await;
        }
    }
}

impl StagedTier for Held {
    fn shape(&self) -> TierShape {
        self.inner.shape()
    }

    fn free_slots(&self) -> usize {
        self.inner.free_slots()
    }

    fn recovered(&self) -> Vec<StagedBlock> {
        self.inner.recovered()
    }

    fn lost(&self) -> Vec<(BlockKey, Location)> {
        self.inner.lost()
    }

    fn write(
        &self,
        block: ReadSlot,
        parent: Option<BlockKey>,
    ) -> BoxFuture<'static, Result<Location, WriteRefusal>> {
        self.inner.write(block, parent)
    }

    fn read(
        &self,
        location: Location,
        key: BlockKey,
        into: WriteSlot,
    ) -> BoxFuture<'static, StagedRead> {
        let (end, ended) = oneshot::channel();
        self.reads.lock().unwrap().push_back((key, end));
        let reading = self.inner.read(location, key, into);
        Box::pin(async move {
            let _ = ended.await;
            reading.await
        })
    }

    fn used(&self, keys: &[BlockKey]) {
        self.inner.used(keys);
    }

    fn evict(&self, location: Location) -> Eviction {
        self.inner.evict(location)
    }

    fn sync(&self) -> BoxFuture<'static, bool> {
        self.inner.sync()
    }
}

/// Lets the node's tasks do what they can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// A node with so many slots of memory that finds `prompts` on its SSD and nothing in memory.
async fn with_on_ssd(world: &World, slots: u32, prompts: &[Vec<BlockKey>]) -> (TestNode, Held) {
    let ssd = HeapStagedTier::new(400, BLOCK_BYTES);
    let writer = World::new().staged("writer", 200, &ssd, Admission::Computed);
    for prompt in prompts {
        writer.store(prompt, 0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let device = Held {
        inner: ssd.reopened(),
        reads: Arc::default(),
    };
    let node = world.over("a", slots, Arc::new(device.clone()), Admission::Computed);
    (node, device)
}

fn prefetched(node: &TestNode) -> [u64; 3] {
    ["brought", "used", "wasted"]
        .map(|outcome| node.counter("flexkv_ssd_prefetched_blocks_total", outcome))
}

fn in_memory(node: &TestNode, keys: &[BlockKey]) -> usize {
    let held = node.node.held(keys);
    let here = held.iter().flatten().filter(|at| at.tier == Tier::Host);
    here.count()
}

#[tokio::test(start_paused = true)]
async fn a_load_after_a_lookup_finds_the_blocks_in_memory() {
    let world = World::new();
    let prompt = keys(1, 20);
    let (a, device) = with_on_ssd(&world, 100, std::slice::from_ref(&prompt)).await;
    let hit = a.node.match_prefix(&prompt).await.unwrap();
    assert_eq!(hit.blocks, 20);
    device.finish().await;
    assert_eq!(in_memory(&a, &prompt), 20);
    assert_eq!(prefetched(&a), [20, 0, 0]);
    a.node
        .load(hit.ticket, 20, Duration::from_secs(1).into())
        .await
        .unwrap();
    let loaded = a.node.wait(hit.ticket).await.unwrap();
    assert_eq!(loaded.blocks.len(), 20);
    assert_eq!(
        a.counter("flexkv_ssd_read_blocks_total", ""),
        20,
        "each once"
    );
    assert_eq!(prefetched(&a), [20, 20, 0]);
    a.node.release(hit.ticket).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_load_takes_over_what_is_under_way() {
    let world = World::new();
    let prompt = keys(1, 20);
    let (a, device) = with_on_ssd(&world, 100, std::slice::from_ref(&prompt)).await;
    let hit = a.node.match_prefix(&prompt).await.unwrap();
    settle().await;
    assert_eq!(device.begun(), prompt[..8], "a few at a time");
    a.node
        .load(hit.ticket, 20, Duration::from_secs(1).into())
        .await
        .unwrap();
    settle().await;
    assert_eq!(
        device.begun(),
        prompt,
        "the load reads the rest, and all of it"
    );
    device.finish().await;
    assert_eq!(a.node.wait(hit.ticket).await.unwrap().blocks.len(), 20);
    assert_eq!(a.counter("flexkv_ssd_read_blocks_total", ""), 20);
    assert_eq!(prefetched(&a), [8, 8, 0]);
    a.node.release(hit.ticket).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_ahead_while_a_load_waits() {
    let world = World::new();
    let (wanted, guessed) = (keys(1, 20), keys(2, 20));
    let prompts = [wanted.clone(), guessed.clone()];
    let (a, device) = with_on_ssd(&world, 100, &prompts).await;
    let load = a.node.match_prefix(&wanted).await.unwrap();
    a.node
        .load(load.ticket, 20, Duration::from_secs(1).into())
        .await
        .unwrap();
    let guess = a.node.match_prefix(&guessed).await.unwrap();
    settle().await;
    assert_eq!(device.begun(), wanted);
    device.finish().await;
    assert_eq!(a.node.wait(load.ticket).await.unwrap().blocks.len(), 20);
    assert_eq!(in_memory(&a, &guessed), 20, "its turn came");
    for ticket in [load.ticket, guess.ticket] {
        a.node.release(ticket).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_gives_up_ends_it() {
    let world = World::new();
    let prompt = keys(1, 20);
    let (a, device) = with_on_ssd(&world, 100, std::slice::from_ref(&prompt)).await;
    let hit = a.node.match_prefix(&prompt).await.unwrap();
    settle().await;
    assert_eq!(device.begun().len(), 8);
    a.node.release(hit.ticket).await.unwrap();
    settle().await;
    assert!(device.begun().is_empty());
    assert_eq!(a.tier.usage().filling, 0, "its slots are back");
    assert_eq!(in_memory(&a, &prompt), 0);
}

#[tokio::test(start_paused = true)]
async fn it_takes_a_part_of_memory_and_nothing_that_is_lost_then() {
    let world = World::new();
    let guessed = keys(1, 30);
    let (a, device) = with_on_ssd(&world, 40, std::slice::from_ref(&guessed)).await;
    let (old, new) = (keys(2, 20), keys(3, 20));
    a.store(&old, 0).await;
    a.store(&new, 0).await;
    settle().await;
    let hit = a.node.match_prefix(&guessed).await.unwrap();
    device.finish().await;
    assert_eq!(in_memory(&a, &guessed), 10, "a quarter of memory");
    assert_eq!(in_memory(&a, &new), 20, "what was used last stays");
    assert_eq!(a.found(&old).await, 20, "what went is on SSD");
    a.node.release(hit.ticket).await.unwrap();
    a.store(&keys(4, 40), 0).await;
    settle().await;
    assert_eq!(prefetched(&a), [10, 0, 10], "nobody used them");
}
