//! Peers as the fetch planner sees them: which transport reaches them, and which to leave out now.
//!
//! Readers load an immutable table; it is replaced as a whole. Knows nothing of blocks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flexkv_index::{OwnerId, OwnerSet};

use crate::plan::Distance;
use crate::rates::{Link, Speed};

/// How to reach one peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) distance: Distance,
    /// Its endpoints that our transports reach, in the order of our transports: the best one first.
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Peer {
    /// How fast it is over the endpoint that works, and how busy over all of them.
    pub(crate) fn speed(&self) -> Speed {
        let speeds = self.endpoints.iter().map(|endpoint| endpoint.link.speed());
        Speed {
            rate: speeds.clone().find_map(|speed| speed.rate),
            in_flight: speeds.map(|speed| speed.in_flight).sum(),
        }
    }

    /// How long it takes for so many bytes more, if its speed is known.
    pub(crate) fn takes(&self, bytes: u64) -> Option<Duration> {
        let speed = self.speed();
        let seconds = (speed.in_flight + bytes) as f64 / speed.rate?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// An endpoint and the transport for it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Index into the node's transports.
    pub(crate) transport: usize,
    pub(crate) uri: String,
    /// What is known of its speed; stays when the table is replaced.
    pub(crate) link: Arc<Link>,
}

impl Endpoint {
    /// An endpoint that nothing is known of.
    pub(crate) fn new(transport: usize, uri: String) -> Self {
        Self {
            transport,
            uri,
            link: Arc::default(),
        }
    }
}

/// The table that readers see.
#[derive(Clone, Default)]
pub(crate) struct PeerTable {
    pub(crate) peers: BTreeMap<OwnerId, Peer>,
    /// Peers that nothing should be fetched from now: no common transport, or in back-off.
    pub(crate) excluded: OwnerSet,
}

#[derive(Clone, Copy)]
struct Failing {
    failures: u32,
    retry_at: Duration,
}

/// All peers and their health.
pub(crate) struct Peers {
    table: ArcSwap<PeerTable>,
    failing: Mutex<BTreeMap<OwnerId, Failing>>,
    /// Nothing is to be fetched from anyone.
    held: AtomicBool,
    backoff: Duration,
    backoff_max: Duration,
}

impl Peers {
    pub(crate) fn new(backoff: Duration, backoff_max: Duration) -> Self {
        Self {
            table: ArcSwap::default(),
            failing: Mutex::default(),
            held: AtomicBool::new(false),
            backoff,
            backoff_max,
        }
    }

    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<PeerTable>> {
        self.table.load()
    }

    /// Replaces the peers by those of the follower.
    pub(crate) fn update(&self, now: Duration, mut peers: BTreeMap<OwnerId, Peer>) {
        let mut failing = self.failing();
        let table = self.table.load();
        let known = table.peers.values().flat_map(|peer| &peer.endpoints);
        let known: BTreeMap<&str, &Arc<Link>> =
            known.map(|at| (at.uri.as_str(), &at.link)).collect();
        for endpoint in peers.values_mut().flat_map(|peer| &mut peer.endpoints) {
            if let Some(link) = known.get(endpoint.uri.as_str()) {
                endpoint.link = Arc::clone(link);
            }
        }
        failing.retain(|owner, _| peers.contains_key(owner));
        self.publish(now, &failing, peers);
    }

    /// Lets peers whose back-off is over be tried again.
    pub(crate) fn tick(&self, now: Duration) {
        let failing = self.failing();
        let table = self.table.load();
        if failing
            .iter()
            .any(|(owner, f)| f.retry_at <= now && table.excluded.contains(*owner))
        {
            self.publish(now, &failing, table.peers.clone());
        }
    }

    /// A fetch from `owner` failed because it did not answer.
    pub(crate) fn failed(&self, now: Duration, owner: OwnerId) {
        let mut failing = self.failing();
        let entry = failing.entry(owner).or_insert(Failing {
            failures: 0,
            retry_at: now,
        });
        if entry.failures > 0 && entry.retry_at > now {
            return;
        }
        let wait = self
            .backoff
            .saturating_mul(1 << entry.failures.min(16))
            .min(self.backoff_max);
        *entry = Failing {
            failures: entry.failures.saturating_add(1),
            retry_at: now + wait,
        };
        self.publish(now, &failing, self.table.load().peers.clone());
    }

    /// Leaves all peers out, or lets them be asked again.
    pub(crate) fn hold(&self, now: Duration, held: bool) {
        let failing = self.failing();
        if self.held.swap(held, Ordering::Relaxed) != held {
            self.publish(now, &failing, self.table.load().peers.clone());
        }
    }

    /// `owner` answered.
    pub(crate) fn succeeded(&self, now: Duration, owner: OwnerId) {
        if !self.table.load().peers.contains_key(&owner) {
            return;
        }
        let mut failing = self.failing();
        if failing.remove(&owner).is_some() {
            self.publish(now, &failing, self.table.load().peers.clone());
        }
    }

    fn publish(
        &self,
        now: Duration,
        failing: &BTreeMap<OwnerId, Failing>,
        peers: BTreeMap<OwnerId, Peer>,
    ) {
        let mut excluded = OwnerSet::default();
        for (owner, peer) in &peers {
            let waits = failing.get(owner).is_some_and(|f| f.retry_at > now);
            if waits || peer.endpoints.is_empty() || self.held.load(Ordering::Relaxed) {
                excluded.insert(*owner);
            }
        }
        self.table.store(Arc::new(PeerTable { peers, excluded }));
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<OwnerId, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
