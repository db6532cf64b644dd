//! A cache in memory, without peers: a tier, a map of its blocks, and the tickets given out.
//!
//! Evicts the least recently used block that nobody reads. Loads finish at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flexkv_block::{BlockKey, Location, NamespaceId};
use futures_util::future::{BoxFuture, ready};

use crate::{
    BlockTier, BlockView, CacheError, Eviction, Filled, KvCache, LoadLimits, LoadStatus, Loaded,
    PrefixHit, ReadSlot, RemovalFeed, Removals, StoreGrant, Ticket, WriteSlot,
};

/// A [`KvCache`] in memory. Clones are the same cache.
#[derive(Clone)]
pub struct HeapCache {
    namespace: NamespaceId,
    tier: Arc<dyn BlockTier>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<BlockKey, Block>,
    tickets: BTreeMap<Ticket, Held>,
    last_ticket: u64,
    /// Counts uses, to tell which block was used last.
    uses: u64,
    removals: RemovalFeed,
}

struct Block {
    location: Location,
    used: u64,
}

/// What a ticket stands for.
enum Held {
    Match(Vec<BlockKey>),
    Load(Vec<ReadSlot>),
    Grant(Vec<Option<(BlockKey, WriteSlot)>>),
}

impl HeapCache {
    /// An empty cache of the blocks of `namespace` in the slots of `tier`.
    pub fn new(namespace: NamespaceId, tier: Arc<dyn BlockTier>) -> Self {
        Self {
            namespace,
            tier,
            state: Arc::default(),
        }
    }

    /// Tickets given out and not released.
    pub fn open_tickets(&self) -> usize {
        self.state().tickets.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn match_now(&self, keys: &[BlockKey]) -> PrefixHit {
        let mut state = self.state();
        let known = keys
            .iter()
            .take_while(|key| state.blocks.contains_key(*key));
        let known: Vec<_> = known.copied().collect();
        let blocks = known.len();
        PrefixHit {
            ticket: state.give(Held::Match(known)),
            blocks,
            local: blocks,
        }
    }

    fn load_now(&self, ticket: Ticket, blocks: usize) -> Result<(), CacheError> {
        let mut state = self.state();
        let keys = match state.tickets.get(&ticket) {
            Some(Held::Match(keys)) => keys[..blocks.min(keys.len())].to_vec(),
            Some(_) => return Err(invalid("load of a ticket that is not a fresh match")),
            None => return Err(CacheError::UnknownTicket { ticket }),
        };
        let pinned = keys
            .into_iter()
            .map_while(|key| state.pin(&*self.tier, key));
        let pinned = pinned.collect();
        state.tickets.insert(ticket, Held::Load(pinned));
        Ok(())
    }

    fn loaded(&self, ticket: Ticket) -> Result<Loaded, CacheError> {
        match self.state().tickets.get(&ticket) {
            Some(Held::Load(pinned)) => Ok(Loaded {
                blocks: pinned.iter().map(view).collect(),
                local: pinned.len(),
                remote: 0,
            }),
            Some(_) => Err(invalid("no load was started with this ticket")),
            None => Err(CacheError::UnknownTicket { ticket }),
        }
    }

    fn store_now(&self, keys: &[BlockKey], first: usize) -> Result<StoreGrant, CacheError> {
        let Some(asked) = keys.get(first..) else {
            let reason = format!("store from block {first} of {}", keys.len());
            return Err(CacheError::Invalid { reason });
        };
        let mut state = self.state();
        let grant = |key: &BlockKey| Some((*key, state.room(&*self.tier, *key)?));
        let held: Vec<_> = asked.iter().map(grant).collect();
        let bytes = |slot: &Option<(BlockKey, WriteSlot)>| Some(slot.as_ref()?.1.bytes().clone());
        Ok(StoreGrant {
            slots: held.iter().map(bytes).collect(),
            ticket: state.give(Held::Grant(held)),
        })
    }

    fn commit_now(&self, ticket: Ticket, filled: &[Filled]) -> Result<(), CacheError> {
        let mut state = self.state();
        let State {
            blocks,
            tickets,
            uses,
            removals,
            ..
        } = &mut *state;
        let held = match tickets.get_mut(&ticket) {
            Some(Held::Grant(held)) => held,
            Some(_) => return Err(invalid("commit with a ticket that is no grant")),
            None => return Err(CacheError::UnknownTicket { ticket }),
        };
        for Filled { index, checksum } in filled {
            let Some((key, slot)) = held.get_mut(*index).and_then(Option::take) else {
                let reason = format!("slot {index} was not granted, or is committed");
                return Err(CacheError::Invalid { reason });
            };
            // Another grant may have been faster with the same block; then this slot is dropped.
            blocks.entry(key).or_insert_with(|| {
                *uses += 1;
                removals.stored([key]);
                Block {
                    location: self.tier.commit(slot, key, *checksum),
                    used: *uses,
                }
            });
        }
        Ok(())
    }

    fn release_now(&self, ticket: Ticket) -> Result<(), CacheError> {
        let held = self.state().tickets.remove(&ticket);
        held.map(drop).ok_or(CacheError::UnknownTicket { ticket })
    }
}

impl State {
    fn give(&mut self, held: Held) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.tickets.insert(ticket, held);
        ticket
    }

    /// Pins a block whose bytes are right; forgets it otherwise.
    fn pin(&mut self, tier: &dyn BlockTier, key: BlockKey) -> Option<ReadSlot> {
        self.uses += 1;
        let block = self.blocks.get_mut(&key)?;
        block.used = self.uses;
        let location = block.location;
        let pinned = tier.pin(location, key).ok()?;
        if pinned.verify() {
            return Some(pinned);
        }
        drop(pinned);
        self.blocks.remove(&key);
        self.removals.removed([key]);
        tier.evict(location);
        None
    }

    /// A slot for a block that is not there, if one is free or can be freed.
    fn room(&mut self, tier: &dyn BlockTier, key: BlockKey) -> Option<WriteSlot> {
        if self.blocks.contains_key(&key) {
            return None;
        }
        tier.reserve().or_else(|| {
            self.evict_one(tier);
            tier.reserve()
        })
    }

    fn evict_one(&mut self, tier: &dyn BlockTier) {
        let mut by_use: Vec<_> = self.blocks.iter().collect();
        by_use.sort_by_key(|(_, block)| block.used);
        let evicted = by_use
            .into_iter()
            .find(|(_, block)| tier.evict(block.location) != Eviction::Pinned);
        if let Some(key) = evicted.map(|(key, _)| *key) {
            self.blocks.remove(&key);
            self.removals.removed([key]);
        }
    }
}

fn view(pinned: &ReadSlot) -> BlockView {
    BlockView {
        key: pinned.key(),
        checksum: pinned.checksum(),
        bytes: pinned.bytes().clone(),
    }
}

fn invalid(reason: &str) -> CacheError {
    CacheError::Invalid {
        reason: reason.to_owned(),
    }
}

impl KvCache for HeapCache {
    fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    fn block_bytes(&self) -> usize {
        self.tier.shape().block_bytes
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        Box::pin(ready(Ok(self.match_now(keys))))
    }

    fn load(
        &self,
        ticket: Ticket,
        blocks: usize,
        _limits: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(ready(self.load_now(ticket, blocks)))
    }

    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        Box::pin(ready(self.loaded(ticket).map(LoadStatus::Ready)))
    }

    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        Box::pin(ready(self.loaded(ticket)))
    }

    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        Box::pin(ready(self.store_now(keys, first)))
    }

    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(ready(self.commit_now(ticket, filled)))
    }

    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(ready(self.release_now(ticket)))
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        Box::pin(ready(Ok(self.state().removals.watch())))
    }
}

impl std::fmt::Debug for HeapCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeapCache({}, {:?})", self.namespace, self.tier.shape())
    }
}
