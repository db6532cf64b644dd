//! The suites on the in-memory implementations, and what these have beyond the traits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flexkv_block::{Location, NamespaceId, Tier};

use super::*;
use crate::conformance::{self, CacheUnderTest, StoreUnderTest, TransportHarness};
use crate::{
    BlockTier, BoxFuture, FetchOutcome, KvCache, LogCursor, LogEntry, MemorySlice, MetadataStore,
    StagedTier, Suspect, SuspectReceiver, TierShape, Transport, Want, suspects,
};

fn tier(slots: u32, block_bytes: usize) -> Arc<dyn BlockTier> {
    Arc::new(HeapTier::new(TierShape {
        tier: Tier::Host,
        slots,
        block_bytes,
    }))
}

struct Harness {
    hub: HeapHub,
    owner: Arc<dyn BlockTier>,
    reader: Arc<dyn BlockTier>,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl Harness {
    fn new(slots: u32, block_bytes: usize) -> Self {
        let (owner, reader) = (tier(slots, block_bytes), tier(slots, block_bytes));
        let hub = HeapHub::new();
        let (tell, suspects) = suspects();
        hub.register("owner", owner.clone());
        hub.register_suspects("owner", tell);
        Self {
            hub,
            owner,
            reader,
            suspects: tokio::sync::Mutex::new(suspects),
        }
    }
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        self.owner.clone()
    }

    fn endpoint(&self) -> String {
        HeapHub::endpoint("owner")
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        self.reader.clone()
    }

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(HeapTransport::new(self.hub.clone()))
    }

    fn dead_endpoint(&self) -> String {
        HeapHub::endpoint("nobody")
    }

    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        Some(Box::pin(async {
            let next = self.suspects.lock().await.next().await;
            next.expect("the hub keeps its end")
        }))
    }
}

#[test]
fn heap_tier_conforms() {
    conformance::tier(tier);
}

#[tokio::test]
async fn heap_staged_tier_conforms() {
    conformance::staged(|slots, block_bytes| Arc::new(HeapStagedTier::new(slots, block_bytes)))
        .await;
}

#[tokio::test]
async fn a_reopened_staged_tier_tells_what_is_in_it() {
    let memory = tier(1, 64);
    let staged = HeapStagedTier::new(2, 64);
    let key = |n| flexkv_block::BlockKey::from_u128(n);
    let mut at = Vec::new();
    for n in 1..3 {
        let slot = memory.reserve().expect("a free slot");
        let sum = slot.bytes().checksum();
        let location = memory.commit(slot, key(n), sum);
        let pin = memory.pin(location, key(n)).expect("just committed");
        at.push(staged.write(pin, Some(key(n - 1))).await.expect("room"));
        memory.evict(location);
    }
    assert_eq!(staged.evict(at[0]), crate::Eviction::Done);
    let left = crate::StagedBlock {
        key: key(2),
        parent: Some(key(1)),
        location: at[1],
    };
    assert_eq!(staged.recovered(), []);
    let reopened = staged.reopened();
    assert_eq!(reopened.recovered(), [left]);
    assert_eq!(reopened.recovered(), [], "it is told once");
    // The process that had it before is dead: it neither writes nor drops anything.
    let slot = memory.reserve().expect("a slot");
    let sum = slot.bytes().checksum();
    let pin = memory.pin(memory.commit(slot, key(9), sum), key(9));
    let late = staged.write(pin.expect("it is there"), None).await;
    assert_eq!(late, Err(crate::WriteRefusal::Failed));
    assert_eq!(staged.evict(left.location), crate::Eviction::Stale);
    assert_eq!(reopened.free_slots(), 1);
}

#[test]
fn an_ssd_shaped_heap_tier_conforms() {
    conformance::tier(|slots, block_bytes| {
        Arc::new(HeapTier::new(TierShape {
            tier: Tier::Ssd,
            slots,
            block_bytes,
        }))
    });
}

#[tokio::test(start_paused = true)]
async fn heap_store_conforms() {
    conformance::store(async || {
        let store = HeapStore::new();
        StoreUnderTest {
            store: Arc::new(store.clone()),
            flush: Box::new(move || {
                store.flush();
                Box::pin(std::future::ready(()))
            }),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn heap_transport_conforms() {
    conformance::transport(async |slots, bytes| Harness::new(slots, bytes)).await;
}

#[tokio::test(start_paused = true)]
async fn heap_cache_conforms() {
    for slots in [4, 8] {
        conformance::cache(async || {
            let namespace = NamespaceId::from_u128(3);
            CacheUnderTest {
                cache: Arc::new(HeapCache::new(namespace, tier(slots, 3000))),
                slots: slots as usize,
                namespace,
                guard: Box::new(()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn open_tickets_are_counted() {
    let cache = HeapCache::new(NamespaceId::from_u128(3), tier(1, 8));
    let hit = cache.match_prefix(&[]).await.expect("match");
    assert_eq!(cache.open_tickets(), 1);
    cache.release(hit.ticket).await.expect("release");
    assert_eq!(cache.open_tickets(), 0);
}

#[test]
fn heap_memory_is_zeroed_and_aligned() {
    let memory = HeapMemory::new(5000);
    assert_eq!(memory.len(), 5000);
    assert_eq!(memory.base() as usize % PAGE, 0);
    let slice = MemorySlice::new(Arc::new(memory), 0, 5000).expect("inside");
    assert_eq!(slice.to_vec(), vec![0; 5000]);
}

#[test]
fn free_slots_are_taken_in_the_order_they_became_free() {
    let tier = tier(3, 8);
    let mut taken: Vec<_> = (0..3).filter_map(|_| tier.reserve()).collect();
    let order = [2, 0, 1].map(|index: usize| taken[index].slot());
    for slot in order {
        taken.retain(|held| held.slot() != slot);
    }
    let again: Vec<_> = (0..3).filter_map(|_| tier.reserve()).collect();
    let again: Vec<_> = again.iter().map(crate::WriteSlot::slot).collect();
    assert_eq!(again, order);
}

#[tokio::test]
async fn a_lost_log_and_lost_entries_are_seen_by_the_reader() {
    let store = HeapStore::new();
    let ttl = Duration::from_secs(60);
    let entry = |sequence| LogEntry {
        sequence,
        bytes: Bytes::new(),
    };
    let entries = [entry(1), entry(2), entry(3)];
    let appended = store.append("a", &entries, true, ttl).await;
    appended.expect("append");
    store.trim_log("a", 2);
    let cursor = LogCursor {
        log: "a".into(),
        after: 0,
    };
    let read = store.read(&[cursor], 9, Duration::ZERO).await;
    assert_eq!(read.expect("read")[0].entries, [entry(3)]);
    assert!(store.evict_log("a"));
    assert!(!store.evict_log("a"));
    let renewal = store.renew("n", Bytes::new(), "a", ttl).await;
    assert!(!renewal.expect("renew").log_kept);
}

#[test]
fn a_peer_can_leave_the_hub() {
    let hub = HeapHub::new();
    let endpoint = hub.register("a", tier(1, 8));
    assert_eq!(endpoint, "mem://a");
    assert!(hub.unregister("a"));
    assert!(!hub.unregister("a"));
}

#[tokio::test]
async fn a_peer_that_comes_back_under_its_name_is_another_one() {
    let harness = Harness::new(4, 8);
    let transport = harness.transport();
    let put = |tier: &dyn BlockTier, n: u8| {
        let slot = tier.reserve().expect("free");
        slot.bytes().write(0, &[n; 8]);
        let key = flexkv_block::BlockKey::from_u128(n.into());
        (
            tier.commit(slot, key, flexkv_block::Checksum::of(&[n; 8])),
            key,
        )
    };
    let fetch = async |(location, key)| {
        let into = harness.reader.reserve().expect("free");
        let want = Want {
            location,
            key,
            into,
        };
        let endpoint = harness.endpoint();
        let fetched = transport.fetch(&endpoint, vec![want], Duration::from_secs(1));
        fetched.await[0].outcome
    };
    let old = put(&*harness.owner, 1);
    assert!(matches!(fetch(old).await, FetchOutcome::Fetched(_)));
    harness.hub.unregister("owner");
    assert_eq!(fetch(old).await, FetchOutcome::Unreachable);
    let successor = tier(4, 8);
    let new = put(&*successor, 2);
    harness.hub.register("owner", successor);
    assert_eq!(
        fetch(old).await,
        FetchOutcome::Stale,
        "another key is there"
    );
    assert!(matches!(fetch(new).await, FetchOutcome::Fetched(_)));
    assert_eq!(harness.reader.free_slots(), 4);
}

#[test]
fn a_location_of_another_tier_is_stale() {
    let tier = tier(1, 8);
    let slot = tier.reserve().expect("free");
    let key = flexkv_block::BlockKey::from_u128(1);
    let location = tier.commit(slot, key, flexkv_block::Checksum(0));
    let elsewhere = Location {
        tier: Tier::Ssd,
        ..location
    };
    assert!(tier.pin(elsewhere, key).is_err());
    assert!(tier.pin(location, key).is_ok());
}
