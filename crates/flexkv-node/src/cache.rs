//! The node as engines see it: `KvCache` over tickets, the core and loads.

use std::sync::Arc;

use flexkv_block::{BlockKey, NamespaceId};
use flexkv_index::{MatchOptions, PrefixMatch};
use flexkv_ports::{
    BoxFuture, CacheError, Filled, KvCache, LoadLimits, LoadStatus, Loaded, PrefixHit, Removals,
    StoreGrant, Ticket,
};
use tokio::sync::watch;

use crate::counters::Miss;
use crate::load::Load;
use crate::tickets::{Found, Granted, Held, Holding, Loading};
use crate::{Node, Shared, ahead};

impl KvCache for Node {
    fn namespace(&self) -> NamespaceId {
        self.shared.config.namespace
    }

    fn block_bytes(&self) -> usize {
        self.shared.tier.shape().block_bytes
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        Box::pin(std::future::ready(self.shared.match_prefix(keys)))
    }

    fn load(
        &self,
        ticket: Ticket,
        blocks: usize,
        limits: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(std::future::ready(
            self.shared.start_load(ticket, blocks, limits),
        ))
    }

    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        let status = self
            .shared
            .loading(ticket)
            .and_then(|result| match &*result.borrow() {
                Some(held) => Ok(LoadStatus::Ready(held.loaded.clone())),
                None if result.has_changed().is_err() => Err(CacheError::UnknownTicket { ticket }),
                None => Ok(LoadStatus::Pending),
            });
        Box::pin(std::future::ready(status))
    }

    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        Box::pin(async move {
            let mut result = self.shared.loading(ticket)?;
            match result.wait_for(Option::is_some).await {
                Ok(held) => Ok(held
                    .as_ref()
                    .map(|held| held.loaded.clone())
                    .unwrap_or_default()),
                Err(_) => Err(CacheError::UnknownTicket { ticket }),
            }
        })
    }

    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        Box::pin(std::future::ready(self.shared.store(keys, first)))
    }

    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(std::future::ready(self.shared.commit(ticket, filled)))
    }

    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        let released = self.shared.tickets.remove(ticket).map(drop);
        Box::pin(std::future::ready(released))
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        Box::pin(std::future::ready(Ok(self.shared.core.removals.watch())))
    }
}

impl Shared {
    fn match_prefix(self: &Arc<Self>, keys: &[BlockKey]) -> Result<PrefixHit, CacheError> {
        let table = self.peers.table();
        let options = MatchOptions {
            prefer: Some(self.own),
            exclude: &table.excluded,
        };
        let mut found = PrefixMatch::default();
        self.snapshot.match_prefix(keys, &options, &mut found);
        let local = found
            .runs
            .iter()
            .filter(|run| run.owner == self.own)
            .map(|run| run.len)
            .sum();
        self.counters.lookups.increment(1);
        self.counters.looked_up_blocks.increment(keys.len() as u64);
        self.counters
            .missed(Miss::Absent, keys.len() - found.blocks);
        let ticket = self.tickets.add(Holding::Match(Found {
            keys: keys[..found.blocks].into(),
            ahead: ahead::begin(self, keys, &found.runs),
        }));
        Ok(PrefixHit {
            ticket,
            blocks: found.blocks,
            local,
        })
    }

    fn start_load(
        self: &Arc<Self>,
        ticket: Ticket,
        blocks: usize,
        limits: LoadLimits,
    ) -> Result<(), CacheError> {
        let shared = self.clone();
        self.tickets.edit(ticket, move |holding| {
            let Holding::Match(Found { keys, ahead }) = holding else {
                return Err(invalid(ticket, "is no match that could be loaded"));
            };
            if blocks > keys.len() {
                let found = keys.len();
                return Err(invalid(
                    ticket,
                    &format!("has {found} blocks, not {blocks}"),
                ));
            }
            let keys: Arc<[BlockKey]> = keys[..blocks].into();
            let (done, result) = watch::channel(None);
            let load = Load::new(shared, keys, limits, ahead.take());
            let task = tokio::spawn(async move {
                let held: Held = load.run().await;
                // Nobody listens any more if the ticket was released; the pins end here then.
                done.send_replace(Some(held));
            });
            *holding = Holding::Load(Loading {
                result,
                task: task.abort_handle(),
            });
            Ok(())
        })
    }

    fn loading(&self, ticket: Ticket) -> Result<watch::Receiver<Option<Held>>, CacheError> {
        self.tickets.edit(ticket, |holding| match holding {
            Holding::Load(loading) => Ok(loading.result.clone()),
            _ => Err(invalid(ticket, "is not being loaded")),
        })
    }

    fn store(&self, keys: &[BlockKey], first: usize) -> Result<StoreGrant, CacheError> {
        if first > keys.len() {
            let reason = format!("store of block {first} on, of {} blocks", keys.len());
            return Err(CacheError::Invalid { reason });
        }
        let wanted = self.core.find(&keys[first..]);
        let count = wanted.iter().filter(|here| here.is_none()).count();
        let reserved = self
            .core
            .reserve(self.now(), count, &*self.tier, &self.counters);
        self.counters
            .refused_blocks
            .increment((count - reserved.len()) as u64);
        let mut reserved = reserved.into_iter();
        let slots: Vec<_> = wanted
            .iter()
            .map(|here| {
                if here.is_none() {
                    reserved.next()
                } else {
                    None
                }
            })
            .collect();
        let places = slots
            .iter()
            .map(|slot| slot.as_ref().map(|s| s.bytes().clone()))
            .collect();
        let ticket = self.tickets.add(Holding::Grant(Granted {
            keys: keys.into(),
            first,
            slots,
        }));
        Ok(StoreGrant {
            ticket,
            slots: places,
        })
    }

    fn commit(&self, ticket: Ticket, filled: &[Filled]) -> Result<(), CacheError> {
        let (keys, taken) = self.tickets.edit(ticket, |holding| {
            let Holding::Grant(granted) = holding else {
                return Err(invalid(ticket, "holds no granted slots"));
            };
            let empty = |f: &&Filled| granted.slots.get(f.index).is_none_or(Option::is_none);
            if let Some(bad) = filled.iter().find(empty) {
                return Err(invalid(
                    ticket,
                    &format!("has no granted slot {}", bad.index),
                ));
            }
            let mut taken = Vec::with_capacity(filled.len());
            for f in filled {
                if let Some(slot) = granted.slots[f.index].take() {
                    taken.push((granted.first + f.index, slot, f.checksum));
                }
            }
            Ok((granted.keys.clone(), taken))
        })?;
        let mut taken = taken;
        taken.sort_unstable_by_key(|(index, ..)| *index);
        let new = self.core.commit(self.now(), &keys, taken, &*self.tier);
        self.counters.stored_blocks.increment(new.len() as u64);
        Ok(())
    }
}

fn invalid(ticket: Ticket, what: &str) -> CacheError {
    CacheError::Invalid {
        reason: format!("ticket {} {what}", ticket.0),
    }
}
