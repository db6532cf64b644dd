//! The suite for [`KvCache`]: one cache without peers.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, NamespaceId};
use tokio::time::timeout;

use super::{PATIENCE, block, key};
use crate::{CacheError, Filled, KvCache, LoadStatus, Loaded, PrefixHit, StoreGrant, Ticket};

/// Long enough for any load that works.
const DEADLINE: Duration = Duration::from_secs(20);

/// A new, empty cache that knows no peer.
pub struct CacheUnderTest {
    /// The cache.
    pub cache: Arc<dyn KvCache>,
    /// How many blocks it holds; at least 4, and few, since suites fill it several times.
    pub slots: usize,
    /// The namespace it was made for.
    pub namespace: NamespaceId,
    /// Whatever must live as long as the cache; dropped after it.
    pub guard: Box<dyn Any>,
}

/// Checks a cache. `make` must give a new one each time.
pub async fn cache(make: impl AsyncFn() -> CacheUnderTest) {
    says_what_it_holds(&make().await);
    matches_nothing_at_first(&make().await).await;
    loads_what_was_stored(&make().await).await;
    matches_the_leading_part_only(&make().await).await;
    stores_the_rest_of_a_prefix(&make().await).await;
    loads_no_more_than_asked(&make().await).await;
    answers_empty_prompts(&make().await).await;
    hides_blocks_until_they_are_committed(&make().await).await;
    frees_what_a_grant_did_not_commit(&make().await).await;
    grants_no_slot_for_a_block_it_has(&make().await).await;
    never_loads_a_block_with_a_wrong_checksum(&make().await).await;
    knows_no_ticket_twice(&make().await).await;
    refuses_calls_without_sense(&make().await).await;
    evicts_the_least_recently_used(&make().await).await;
    keeps_loaded_blocks_readable(&make().await).await;
    grants_nothing_when_everything_is_held(&make().await).await;
    tells_what_it_no_longer_holds(&make().await).await;
}

fn says_what_it_holds(test: &CacheUnderTest) {
    assert_eq!(test.cache.namespace(), test.namespace);
    assert!(test.cache.block_bytes() > 0, "blocks have bytes");
    assert!(test.slots >= 4, "the suite needs at least 4 slots");
}

async fn matches_nothing_at_first(test: &CacheUnderTest) {
    let hit = test.find(0..3).await;
    assert_eq!((hit.blocks, hit.local), (0, 0), "an empty cache");
    let loaded = test.load(hit.ticket, 0).await;
    assert!(loaded.blocks.is_empty());
    test.release(hit.ticket).await;
}

async fn loads_what_was_stored(test: &CacheUnderTest) {
    test.fill(0..4).await;
    let hit = test.find(0..4).await;
    assert_eq!((hit.blocks, hit.local), (4, 4));
    let loaded = test.load(hit.ticket, 4).await;
    assert_eq!((loaded.local, loaded.remote), (4, 0));
    test.check(&loaded, 0..4);
    let polled = test.cache.poll(hit.ticket).await;
    match polled.expect("poll after the load") {
        LoadStatus::Ready(loaded) => test.check(&loaded, 0..4),
        LoadStatus::Pending => panic!("pending after `wait` returned"),
    }
    test.release(hit.ticket).await;
}

/// Keys are chained: no two prompts share a block after one that differs.
async fn matches_the_leading_part_only(test: &CacheUnderTest) {
    test.fill(0..3).await;
    for (prompt, expected) in [
        (vec![0, 1, 2, 3], 3),
        (vec![0, 1], 2),
        (vec![0, 9, 10], 1),
        (vec![9, 10, 11], 0),
    ] {
        let keys: Vec<_> = prompt.iter().copied().map(key).collect();
        let hit = test.cache.match_prefix(&keys).await.expect("match");
        assert_eq!(
            hit.blocks, expected,
            "blocks 0, 1, 2 stored, match {prompt:?}"
        );
        let loaded = test.load(hit.ticket, expected).await;
        test.check(&loaded, 0..expected as u64);
        test.release(hit.ticket).await;
    }
}

async fn stores_the_rest_of_a_prefix(test: &CacheUnderTest) {
    test.fill(0..2).await;
    let keys = keys(0..4);
    let grant = test.cache.store(&keys, 2).await.expect("store");
    assert_eq!(grant.slots.len(), 2, "one entry per block of keys[2..]");
    test.commit(&grant, 2).await;
    test.release(grant.ticket).await;
    let hit = test.find(0..4).await;
    assert_eq!(hit.blocks, 4);
    let loaded = test.load(hit.ticket, 4).await;
    test.check(&loaded, 0..4);
    test.release(hit.ticket).await;
}

async fn loads_no_more_than_asked(test: &CacheUnderTest) {
    test.fill(0..4).await;
    for blocks in [0, 1, 3] {
        let hit = test.find(0..4).await;
        let loaded = test.load(hit.ticket, blocks).await;
        test.check(&loaded, 0..blocks as u64);
        test.release(hit.ticket).await;
    }
}

async fn answers_empty_prompts(test: &CacheUnderTest) {
    let hit = test.find(0..0).await;
    assert_eq!((hit.blocks, hit.local), (0, 0));
    test.release(hit.ticket).await;
    test.fill(0..2).await;
    for (range, first) in [(0..0, 0), (0..2, 2)] {
        let grant = test.cache.store(&keys(range), first).await;
        let grant = grant.expect("store of no block");
        assert!(grant.slots.is_empty());
        test.cache.commit(grant.ticket, &[]).await.expect("commit");
        test.release(grant.ticket).await;
    }
}

async fn hides_blocks_until_they_are_committed(test: &CacheUnderTest) {
    let grant = test.grant(0..3).await;
    test.write(&grant, 0);
    assert_eq!(test.count(0..3).await, 0, "granted, not committed");
    let first = test.filled(&grant, 0, 0);
    let committed = test.cache.commit(grant.ticket, &[first]).await;
    committed.expect("commit of one block");
    assert_eq!(test.count(0..3).await, 1, "one of three committed");
    let rest = [test.filled(&grant, 1, 1), test.filled(&grant, 2, 2)];
    let committed = test.cache.commit(grant.ticket, &rest).await;
    committed.expect("commit of the rest");
    assert_eq!(test.count(0..3).await, 3, "before the grant is released");
    test.release(grant.ticket).await;
    assert_eq!(test.count(0..3).await, 3, "after the grant is released");
}

async fn frees_what_a_grant_did_not_commit(test: &CacheUnderTest) {
    for _ in 0..3 {
        let grant = test.grant(0..test.slots as u64).await;
        let granted = grant.slots.iter().flatten().count();
        assert!(granted > 0, "an empty cache grants slots");
        test.write(&grant, 0);
        test.release(grant.ticket).await;
        assert_eq!(test.count(0..test.slots as u64).await, 0, "never committed");
    }
    test.fill(0..4).await;
    assert_eq!(test.count(0..4).await, 4);
}

async fn grants_no_slot_for_a_block_it_has(test: &CacheUnderTest) {
    test.fill(1..3).await;
    let grant = test.grant(0..4).await;
    let granted: Vec<_> = grant.slots.iter().map(Option::is_some).collect();
    assert_eq!(
        granted,
        [true, false, false, true],
        "blocks 1 and 2 are there"
    );
    let committed = test.filled(&grant, 1, 1);
    let refused = test.cache.commit(grant.ticket, &[committed]).await;
    assert_invalid(refused, "commit of a block that was not granted");
    test.release(grant.ticket).await;
}

async fn never_loads_a_block_with_a_wrong_checksum(test: &CacheUnderTest) {
    let grant = test.grant(0..2).await;
    test.write(&grant, 0);
    let wrong = Filled {
        index: 1,
        checksum: Checksum(0x0bad),
    };
    let filled = [test.filled(&grant, 0, 0), wrong];
    // Whether the lie is found now or at the first load is the cache's choice.
    let _ = test.cache.commit(grant.ticket, &filled).await;
    test.release(grant.ticket).await;
    let hit = test.find(0..2).await;
    let loaded = test.load(hit.ticket, hit.blocks).await;
    let count = loaded.blocks.len() as u64;
    assert!(count <= 1, "a block with a wrong checksum was handed out");
    test.check(&loaded, 0..count);
    test.release(hit.ticket).await;
}

async fn knows_no_ticket_twice(test: &CacheUnderTest) {
    test.fill(0..1).await;
    let hit = test.find(0..1).await;
    let grant = test.grant(5..6).await;
    let filled = test.filled(&grant, 0, 5);
    assert_ne!(hit.ticket, grant.ticket);
    for ticket in [hit.ticket, grant.ticket] {
        test.release(ticket).await;
    }
    for ticket in [hit.ticket, grant.ticket, Ticket(u64::MAX)] {
        let unknown = CacheError::UnknownTicket { ticket };
        let cache = &test.cache;
        assert_eq!(cache.release(ticket).await, Err(unknown.clone()), "release");
        let load = cache.load(ticket, 1, DEADLINE.into()).await;
        assert_eq!(load, Err(unknown.clone()), "load");
        let poll = cache.poll(ticket).await.map(|_| "a status");
        assert_eq!(poll, Err(unknown.clone()), "poll");
        let wait = cache.wait(ticket).await.map(|_| "blocks");
        assert_eq!(wait, Err(unknown.clone()), "wait");
        let commit = cache.commit(ticket, &[filled]).await;
        assert_eq!(commit, Err(unknown), "commit");
    }
    assert_eq!(test.count(5..6).await, 0, "committed by a released ticket");
}

async fn refuses_calls_without_sense(test: &CacheUnderTest) {
    let store = test.cache.store(&keys(0..2), 3).await;
    assert_invalid(store.map(|_| ()), "store from behind the keys' end");
    let grant = test.grant(0..1).await;
    let beyond = Filled {
        index: 1,
        checksum: Checksum(0),
    };
    let commit = test.cache.commit(grant.ticket, &[beyond]).await;
    assert_invalid(commit, "commit of slot 1 of 1");
    test.release(grant.ticket).await;
}

async fn evicts_the_least_recently_used(test: &CacheUnderTest) {
    let slots = test.slots as u64;
    for n in 0..slots {
        test.fill(n..n + 1).await;
    }
    for n in slots..slots + 2 {
        let hit = test.find(0..1).await;
        let loaded = test.load(hit.ticket, 1).await;
        test.check(&loaded, 0..1);
        test.release(hit.ticket).await;
        test.fill(n..n + 1).await;
        assert_eq!(test.count(n..n + 1).await, 1, "the newest is there");
        assert_eq!(test.count(0..1).await, 1, "the one in use was evicted");
    }
    assert_eq!(
        test.count(1..2).await,
        0,
        "the least recently used is still there"
    );
}

async fn keeps_loaded_blocks_readable(test: &CacheUnderTest) {
    let slots = test.slots as u64;
    test.fill(0..2).await;
    let hit = test.find(0..2).await;
    let loaded = test.load(hit.ticket, 2).await;
    for n in 100..100 + 3 * slots {
        test.fill(n..n + 1).await;
        test.check(&loaded, 0..2);
    }
    test.release(hit.ticket).await;
}

async fn grants_nothing_when_everything_is_held(test: &CacheUnderTest) {
    let asked = test.slots as u64;
    let mut grants = Vec::new();
    for first in [0, 100, 200] {
        grants.push(test.grant(first..first + asked).await);
    }
    let slots = grants.iter().flat_map(|grant| &grant.slots);
    let granted = slots.flatten().count();
    assert!(granted > 0, "an empty cache grants slots");
    assert!(granted <= test.slots, "{granted} of {asked} slots granted");
    for grant in grants {
        test.release(grant.ticket).await;
    }
    test.fill(0..4).await;
    assert_eq!(test.count(0..4).await, 4, "slots leaked");
}

/// Each watcher hears of every block that went while it watched, and of none that is there.
async fn tells_what_it_no_longer_holds(test: &CacheUnderTest) {
    let slots = test.slots as u64;
    test.fill(0..1).await;
    let removals = test.cache.removals().await.expect("a watch");
    let later = test.cache.removals().await.expect("a second watch");
    for n in 1..slots + 3 {
        test.fill(n..n + 1).await;
    }
    for watcher in [removals, later] {
        let mut gone = BTreeSet::new();
        while gone.len() < 3 {
            let removed = timeout(PATIENCE, watcher.next()).await;
            let removed = removed.expect("evictions are told");
            assert_eq!(removed.lost, 0, "few are told at once");
            gone.extend(removed.keys);
        }
        for n in (0..slots + 3).filter(|n| gone.contains(&key(*n))) {
            assert_eq!(test.count(n..n + 1).await, 0, "{n} was told to be gone");
        }
    }
}

impl CacheUnderTest {
    async fn find(&self, blocks: std::ops::Range<u64>) -> PrefixHit {
        let hit = self.cache.match_prefix(&keys(blocks.clone())).await;
        hit.unwrap_or_else(|error| panic!("match {blocks:?}: {error}"))
    }

    /// How many leading blocks match.
    async fn count(&self, blocks: std::ops::Range<u64>) -> usize {
        let hit = self.find(blocks).await;
        self.release(hit.ticket).await;
        hit.blocks
    }

    async fn load(&self, ticket: Ticket, blocks: usize) -> Loaded {
        let started = self.cache.load(ticket, blocks, DEADLINE.into()).await;
        started.expect("load");
        let waiting = timeout(DEADLINE + PATIENCE, self.cache.wait(ticket));
        let loaded = waiting.await.expect("a load ends by its deadline");
        loaded.expect("wait")
    }

    /// Checks that exactly these blocks were loaded.
    fn check(&self, loaded: &Loaded, blocks: std::ops::Range<u64>) {
        let got: Vec<_> = loaded.blocks.iter().map(|view| view.key).collect();
        assert_eq!(got, keys(blocks.clone()), "blocks loaded");
        for (view, n) in loaded.blocks.iter().zip(blocks) {
            let expected = block(n, self.cache.block_bytes());
            assert_eq!(view.checksum, Checksum::of(&expected), "checksum of {n}");
            assert_eq!(view.bytes.to_vec(), expected, "bytes of block {n}");
        }
    }

    async fn grant(&self, blocks: std::ops::Range<u64>) -> StoreGrant {
        let grant = self.cache.store(&keys(blocks.clone()), 0).await;
        let grant = grant.unwrap_or_else(|error| panic!("store {blocks:?}: {error}"));
        let asked = (blocks.end - blocks.start) as usize;
        assert_eq!(grant.slots.len(), asked, "an entry per block");
        grant
    }

    /// Writes blocks `first`, `first + 1`, … to the granted slots.
    fn write(&self, grant: &StoreGrant, first: u64) {
        for (slot, n) in grant.slots.iter().zip(first..) {
            if let Some(slot) = slot {
                assert_eq!(slot.len(), self.cache.block_bytes(), "a granted slot");
                slot.write(0, &block(n, slot.len()));
            }
        }
    }

    /// Says that slot `index` of a grant holds block `n`, after writing it.
    fn filled(&self, grant: &StoreGrant, index: usize, n: u64) -> Filled {
        let bytes = block(n, self.cache.block_bytes());
        if let Some(slot) = &grant.slots[index] {
            slot.write(0, &bytes);
        }
        Filled {
            index,
            checksum: Checksum::of(&bytes),
        }
    }

    /// Writes and commits whatever was granted.
    async fn commit(&self, grant: &StoreGrant, first: u64) {
        self.write(grant, first);
        let granted = (0..grant.slots.len()).filter(|index| grant.slots[*index].is_some());
        let filled: Vec<_> = granted
            .map(|index| self.filled(grant, index, first + index as u64))
            .collect();
        let committed = self.cache.commit(grant.ticket, &filled).await;
        committed.expect("commit");
    }

    /// Stores these blocks as one prompt; there must be room.
    async fn fill(&self, blocks: std::ops::Range<u64>) {
        let first = blocks.start;
        let grant = self.grant(blocks.clone()).await;
        let granted = grant.slots.iter().all(Option::is_some);
        assert!(granted, "no slot for some block of {blocks:?}");
        self.commit(&grant, first).await;
        self.release(grant.ticket).await;
    }

    async fn release(&self, ticket: Ticket) {
        let released = self.cache.release(ticket).await;
        released.unwrap_or_else(|error| panic!("release: {error}"));
    }
}

fn keys(blocks: std::ops::Range<u64>) -> Vec<BlockKey> {
    blocks.map(key).collect()
}

#[track_caller]
fn assert_invalid(result: Result<(), CacheError>, what: &str) {
    assert!(
        matches!(result, Err(CacheError::Invalid { .. })),
        "{what}: {result:?} is not `Invalid`"
    );
}
