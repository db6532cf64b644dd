//! The simulated engine against a scripted cache: what it counts, and that it gives all tickets back.

use std::sync::Mutex;

use flexkv_block::{Checksum, NamespaceId, Tier};
use flexkv_ports::{
    BlockTier, BoxFuture, HeapTier, LoadLimits, LoadStatus, PrefixHit, RemovalFeed, Removals,
    StoreGrant, TierShape, WriteSlot,
};

use super::*;

const BYTES: usize = 64;

/// A cache that holds `held` leading blocks of any prompt; block `wrong` has other bytes.
struct Scripted {
    tier: HeapTier,
    held: usize,
    wrong: Option<usize>,
    fail_load: bool,
    open: Mutex<Vec<Ticket>>,
    keys: Mutex<Vec<BlockKey>>,
    slots: Mutex<Vec<WriteSlot>>,
    committed: Mutex<Vec<Filled>>,
}

impl Scripted {
    fn new(held: usize, wrong: Option<usize>, fail_load: bool) -> Arc<Self> {
        Arc::new(Self {
            tier: HeapTier::new(TierShape {
                tier: Tier::Host,
                slots: 16,
                block_bytes: BYTES,
            }),
            held,
            wrong,
            fail_load,
            open: Mutex::default(),
            keys: Mutex::default(),
            slots: Mutex::default(),
            committed: Mutex::default(),
        })
    }

    fn give(&self, ticket: u64) -> Ticket {
        self.open.lock().unwrap().push(Ticket(ticket));
        Ticket(ticket)
    }

    fn block(&self, index: usize) -> BlockView {
        let key = self.keys.lock().unwrap()[index];
        let slot = self.tier.reserve().unwrap();
        let filled_as = if self.wrong == Some(index) {
            BlockKey::from_u128(!key.as_u128())
        } else {
            key
        };
        let checksum = content::write_block(filled_as, slot.bytes());
        let bytes = slot.bytes().clone();
        self.slots.lock().unwrap().push(slot);
        BlockView {
            key,
            checksum,
            bytes,
        }
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl KvCache for Scripted {
    fn namespace(&self) -> NamespaceId {
        NamespaceId::from_u128(0)
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        *self.keys.lock().unwrap() = keys.to_vec();
        ready(Ok(PrefixHit {
            ticket: self.give(1),
            blocks: self.held.min(keys.len()),
            local: 0,
        }))
    }

    fn load(&self, _: Ticket, _: usize, _: LoadLimits) -> BoxFuture<'_, Result<(), CacheError>> {
        ready(if self.fail_load {
            Err(CacheError::Gone {
                reason: "scripted".into(),
            })
        } else {
            Ok(())
        })
    }

    fn poll(&self, _: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        ready(Ok(LoadStatus::Pending))
    }

    fn wait(&self, _: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        let held = self.held.min(self.keys.lock().unwrap().len());
        ready(Ok(Loaded {
            blocks: (0..held).map(|index| self.block(index)).collect(),
            local: 1.min(held),
            remote: held.saturating_sub(1),
        }))
    }

    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        let slots = (first..keys.len()).map(|index| {
            // The last block of every prompt is one that the cache does not take.
            (index + 1 < keys.len()).then(|| {
                let slot = self.tier.reserve().unwrap();
                let bytes = slot.bytes().clone();
                self.slots.lock().unwrap().push(slot);
                bytes
            })
        });
        ready(Ok(StoreGrant {
            slots: slots.collect(),
            ticket: self.give(2),
        }))
    }

    fn commit<'a>(
        &'a self,
        _: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.committed.lock().unwrap().extend(filled);
        ready(Ok(()))
    }

    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        let mut open = self.open.lock().unwrap();
        let at = open.iter().position(|held| *held == ticket);
        at.map(|at| open.swap_remove(at));
        ready(at.map(|_| ()).ok_or(CacheError::UnknownTicket { ticket }))
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        ready(Ok(RemovalFeed::default().watch()))
    }
}

async fn run(cache: &Arc<Scripted>, blocks: u128) -> Result<Outcome, CacheError> {
    let keys: Vec<BlockKey> = (1..=blocks).map(BlockKey::from_u128).collect();
    let engine = Engine::new(
        cache.clone(),
        Duration::from_secs(1),
        Arc::new(Semaphore::new(1)),
    );
    let outcome = engine.run(&keys).await;
    assert_eq!(*cache.open.lock().unwrap(), [], "tickets left open");
    outcome
}

#[tokio::test]
async fn what_is_there_is_checked_and_the_rest_stored() {
    let cache = Scripted::new(3, None, false);
    let outcome = run(&cache, 6).await.unwrap();
    assert_eq!(
        (outcome.blocks, outcome.promised, outcome.verified),
        (6, 3, 3)
    );
    assert_eq!((outcome.local, outcome.remote, outcome.corrupt), (1, 2, 0));
    assert_eq!(outcome.stored, 2, "the cache took all but the last");
    let mut block = [0; BYTES];
    content::fill(BlockKey::from_u128(5), &mut block);
    let expect = Filled {
        index: 1,
        checksum: Checksum::of(&block),
    };
    assert_eq!(cache.committed.lock().unwrap()[1], expect);
}

#[tokio::test]
async fn wrong_bytes_are_found_and_nothing_after_them_counts() {
    let outcome = run(&Scripted::new(4, Some(1), false), 4).await.unwrap();
    assert_eq!((outcome.verified, outcome.corrupt), (1, 1));
    assert_eq!(outcome.stored, 2, "blocks 1 and 2 are computed anew");
}

#[tokio::test]
async fn nothing_is_left_open_when_the_cache_fails_or_has_nothing() {
    let failed = run(&Scripted::new(2, None, true), 4).await;
    assert!(matches!(failed, Err(CacheError::Gone { .. })));
    let outcome = run(&Scripted::new(0, None, true), 4).await.unwrap();
    assert_eq!((outcome.verified, outcome.stored), (0, 3));
    assert_eq!(
        run(&Scripted::new(2, None, false), 0).await.unwrap(),
        Outcome::default()
    );
}
