//! Tickets: what engines hold in this node, until they release it.
//!
//! Dropping a ticket's state gives everything back: pins, granted slots, a running load. Knows
//! nothing of engines or sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, Loaded, ReadSlot, Ticket, WriteSlot};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::ahead::Ahead;

/// A finished load with the pins that keep its blocks in place.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) loaded: Loaded,
    /// Kept for their drop, which ends the pins.
    _pins: Vec<ReadSlot>,
}

impl Held {
    pub(crate) fn new(loaded: Loaded, pins: Vec<ReadSlot>) -> Self {
        Self {
            loaded,
            _pins: pins,
        }
    }
}

/// A load in progress or finished. Ends with it.
#[derive(Debug)]
pub(crate) struct Loading {
    pub(crate) result: watch::Receiver<Option<Held>>,
    pub(crate) task: AbortHandle,
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a lookup found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) keys: Arc<[BlockKey]>,
    /// Brings some of them to memory meanwhile.
    pub(crate) ahead: Option<Ahead>,
}

/// Slots granted to an engine that stores blocks.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) keys: Arc<[BlockKey]>,
    /// Index of the first block that was asked for.
    pub(crate) first: usize,
    pub(crate) slots: Vec<Option<WriteSlot>>,
}

/// What a ticket stands for.
#[derive(Debug)]
pub(crate) enum Holding {
    /// A match.
    Match(Found),
    /// A load of those.
    Load(Loading),
    /// Granted slots.
    Grant(Granted),
}

#[derive(Default)]
struct Table {
    next: u64,
    holdings: BTreeMap<Ticket, Holding>,
}

/// All tickets of a node.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<Table>);

impl Tickets {
    fn with<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add(&self, holding: Holding) -> Ticket {
        self.with(|table| {
            table.next += 1;
            let ticket = Ticket(table.next);
            table.holdings.insert(ticket, holding);
            ticket
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.with(|table| table.holdings.len())
    }

    /// Calls `act` with what the ticket holds.
    pub(crate) fn edit<T>(
        &self,
        ticket: Ticket,
        act: impl FnOnce(&mut Holding) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        self.with(|table| match table.holdings.get_mut(&ticket) {
            Some(holding) => act(holding),
            None => Err(CacheError::UnknownTicket { ticket }),
        })
    }

    /// Takes the ticket away. What it held is dropped by the caller, outside of the lock.
    pub(crate) fn remove(&self, ticket: Ticket) -> Result<Holding, CacheError> {
        self.with(|table| table.holdings.remove(&ticket))
            .ok_or(CacheError::UnknownTicket { ticket })
    }

    /// Takes all tickets away.
    pub(crate) fn clear(&self) -> Vec<Holding> {
        self.with(|table| std::mem::take(&mut table.holdings).into_values().collect())
    }
}
