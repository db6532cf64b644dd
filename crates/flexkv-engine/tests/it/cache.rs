//! A small cache over a memory file: one host, no peers, least recently used goes first. It serves
//! the protocol's tests, and shows them what sessions hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, NamespaceId};
use flexkv_ports::{
    BlockView, BoxFuture, CacheError, Filled, KvCache, LoadLimits, LoadStatus, Loaded, Memory,
    MemorySlice, PrefixHit, RemovalFeed, Removals, StoreGrant, Ticket,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::memfd::MemfdMemory;

pub(crate) const NAMESPACE: NamespaceId = NamespaceId::from_u128(0x5eed);
pub(crate) const BLOCK_BYTES: usize = 4096;

pub(crate) struct TinyCache {
    arena: Arc<dyn Memory>,
    state: Mutex<State>,
    /// While false, loads do not get on.
    loading: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    index: HashMap<BlockKey, usize>,
    held: HashMap<Ticket, Hold>,
    tickets: u64,
    clock: u64,
    removals: RemovalFeed,
}

#[derive(Clone, Default)]
struct Slot {
    block: Option<(BlockKey, Checksum)>,
    granted: bool,
    pins: usize,
    used: u64,
}

enum Hold {
    Match {
        keys: Vec<BlockKey>,
        /// Blocks asked for and the deadline, once loading.
        load: Option<(usize, Duration)>,
        /// Slots pinned, once loaded.
        pinned: Option<Vec<usize>>,
    },
    Grant {
        /// Per key: the slot, until it is committed.
        slots: Vec<(BlockKey, Option<usize>)>,
    },
}

impl TinyCache {
    pub(crate) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            arena: Arc::new(MemfdMemory::new(slots * BLOCK_BYTES)),
            state: Mutex::new(State {
                slots: vec![Slot::default(); slots],
                ..State::default()
            }),
            loading: watch::Sender::new(true),
        })
    }

    pub(crate) fn arena(&self) -> Arc<dyn Memory> {
        self.arena.clone()
    }

    /// Lets loads go on, or stops them.
    pub(crate) fn set_loading(&self, on: bool) {
        self.loading.send_replace(on);
    }

    pub(crate) fn tickets(&self) -> usize {
        self.state().held.len()
    }

    pub(crate) fn granted(&self) -> usize {
        self.state()
            .slots
            .iter()
            .filter(|slot| slot.granted)
            .count()
    }

    pub(crate) fn pins(&self) -> usize {
        self.state().slots.iter().map(|slot| slot.pins).sum()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.state().index.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics inside the cache")
    }

    fn bytes(&self, slot: usize) -> MemorySlice {
        MemorySlice::new(self.arena.clone(), slot * BLOCK_BYTES, BLOCK_BYTES).expect("in the arena")
    }

    /// Pins what is asked for, as far as it is there and right.
    fn finish(&self, ticket: Ticket, give_up: bool) -> Result<LoadStatus, CacheError> {
        let mut state = self.state();
        let state = &mut *state;
        state.clock += 1;
        let Some(Hold::Match { keys, load, pinned }) = state.held.get_mut(&ticket) else {
            return Err(CacheError::UnknownTicket { ticket });
        };
        let Some((blocks, _)) = *load else {
            return Err(invalid("no load was started"));
        };
        if pinned.is_none() && !give_up && !*self.loading.borrow() {
            return Ok(LoadStatus::Pending);
        }
        let wanted = keys.iter().take(if give_up { 0 } else { blocks });
        let pinned = pinned.get_or_insert_with(|| {
            let slots = wanted.map_while(|key| state.index.get(key).copied());
            let good = |slot: &usize| {
                let sum = state.slots[*slot].block.map(|(_, checksum)| checksum);
                sum == Some(self.bytes(*slot).checksum())
            };
            let slots: Vec<_> = slots.take_while(good).collect();
            for slot in &slots {
                state.slots[*slot].pins += 1;
                state.slots[*slot].used = state.clock;
            }
            slots
        });
        let view = |slot: &usize| {
            let (key, checksum) = state.slots[*slot].block.expect("pinned");
            BlockView {
                key,
                checksum,
                bytes: self.bytes(*slot),
            }
        };
        Ok(LoadStatus::Ready(Loaded {
            blocks: pinned.iter().map(view).collect(),
            local: pinned.len(),
            remote: 0,
        }))
    }
}

impl State {
    fn ticket(&mut self, hold: Hold) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.held.insert(ticket, hold);
        ticket
    }

    /// A slot to fill: a free one, or that of the block unused for longest.
    fn reserve(&mut self) -> Option<usize> {
        let idle = |slot: &Slot| !slot.granted && slot.pins == 0;
        let (at, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| idle(slot))
            .min_by_key(|(_, slot)| (slot.block.is_some(), slot.used))?;
        slot.granted = true;
        if let Some((key, _)) = slot.block.take() {
            self.index.remove(&key);
            self.removals.removed([key]);
        }
        Some(at)
    }

    fn commit(&mut self, ticket: Ticket, filled: &[Filled]) -> Result<(), CacheError> {
        let Some(Hold::Grant { slots }) = self.held.get_mut(&ticket) else {
            return Err(CacheError::UnknownTicket { ticket });
        };
        for fill in filled {
            let Some((key, Some(at))) = slots.get(fill.index).copied() else {
                return Err(invalid("no such slot was granted"));
            };
            slots[fill.index].1 = None;
            self.clock += 1;
            let slot = &mut self.slots[at];
            slot.granted = false;
            slot.used = self.clock;
            if *self.index.entry(key).or_insert(at) == at {
                slot.block = Some((key, fill.checksum));
                self.removals.stored([key]);
            }
        }
        Ok(())
    }

    fn release(&mut self, ticket: Ticket) -> Result<(), CacheError> {
        match self.held.remove(&ticket) {
            None => return Err(CacheError::UnknownTicket { ticket }),
            Some(Hold::Match { pinned, .. }) => {
                for slot in pinned.into_iter().flatten() {
                    self.slots[slot].pins -= 1;
                }
            }
            Some(Hold::Grant { slots }) => {
                for slot in slots.into_iter().filter_map(|(_, slot)| slot) {
                    self.slots[slot].granted = false;
                }
            }
        }
        Ok(())
    }
}

fn invalid(reason: &str) -> CacheError {
    CacheError::Invalid {
        reason: reason.to_owned(),
    }
}

impl KvCache for TinyCache {
    fn namespace(&self) -> NamespaceId {
        NAMESPACE
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        Box::pin(async move {
            let mut state = self.state();
            let present = |key: &&BlockKey| state.index.contains_key(*key);
            let blocks = keys.iter().take_while(present).count();
            let ticket = state.ticket(Hold::Match {
                keys: keys[..blocks].to_vec(),
                load: None,
                pinned: None,
            });
            Ok(PrefixHit {
                ticket,
                blocks,
                local: blocks,
            })
        })
    }

    fn load(
        &self,
        ticket: Ticket,
        blocks: usize,
        limits: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async move {
            match self.state().held.get_mut(&ticket) {
                Some(Hold::Match { load, .. }) => {
                    *load = Some((blocks, limits.deadline));
                    Ok(())
                }
                _ => Err(CacheError::UnknownTicket { ticket }),
            }
        })
    }

    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        Box::pin(async move { self.finish(ticket, false) })
    }

    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        Box::pin(async move {
            let within = match self.state().held.get(&ticket) {
                Some(Hold::Match { load, .. }) => load.map_or(Duration::ZERO, |(_, within)| within),
                _ => return Err(CacheError::UnknownTicket { ticket }),
            };
            let mut loading = self.loading.subscribe();
            let late = timeout(within, loading.wait_for(|on| *on)).await.is_err();
            match self.finish(ticket, late)? {
                LoadStatus::Ready(loaded) => Ok(loaded),
                LoadStatus::Pending => Err(invalid("loading was stopped while it ended")),
            }
        })
    }

    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        Box::pin(async move {
            let mut state = self.state();
            let new = keys
                .get(first..)
                .ok_or_else(|| invalid("first is behind the keys"))?;
            let mut slots = Vec::new();
            for key in new {
                let present = state.index.contains_key(key);
                slots.push((*key, if present { None } else { state.reserve() }));
            }
            let places = slots
                .iter()
                .map(|(_, slot)| slot.map(|slot| self.bytes(slot)));
            let places = places.collect();
            Ok(StoreGrant {
                ticket: state.ticket(Hold::Grant { slots }),
                slots: places,
            })
        })
    }

    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move { self.state().commit(ticket, filled) })
    }

    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async move { self.state().release(ticket) })
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        Box::pin(async move { Ok(self.state().removals.watch()) })
    }
}
