//! A fetch: some blocks asked of one peer, shared by all loads that want any of them.
//!
//! It runs for as long as a load holds it; when the last one lets go, the transport's request is given
//! up and its slots return. What arrives becomes blocks of this node. Which peer to ask for what is
//! decided by whoever starts a fetch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, Tier};
use flexkv_index::OwnerId;
use flexkv_ports::{FetchOutcome, Fetched, ReadSlot, Suspect, Want, WriteSlot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Shared;
use crate::landing::Landing;
use crate::peers::{Endpoint, Peer};

/// A peer that does not answer for so long has failed, unless it is known to take longer.
const FAIR_CHANCE: Duration = Duration::from_millis(100);

/// What to fetch, and from whom.
pub(crate) struct Order<'a> {
    /// The prefix that the blocks are of.
    pub(crate) keys: &'a Arc<[BlockKey]>,
    /// Which of its blocks, and where the peer has them.
    pub(crate) blocks: Vec<(usize, Location)>,
    pub(crate) owner: OwnerId,
    pub(crate) peer: &'a Peer,
    pub(crate) patience: Duration,
    /// Fetches that take too long: others are not to be waited for, but run beside them.
    pub(crate) late: &'a dyn Fn(u64) -> bool,
}

/// Each block's place in a fetch and in the prefix.
pub(crate) type Places = Vec<(usize, usize)>;

/// What became of an order.
#[derive(Default)]
pub(crate) struct Claim {
    /// Blocks of the prefix that are here by now.
    pub(crate) here: Vec<usize>,
    /// Fetches that bring the others.
    pub(crate) fetches: Vec<(Arc<Fetch>, Places)>,
    /// Which of them was begun now.
    pub(crate) started: Option<u64>,
    /// There were not enough slots for all.
    pub(crate) short: bool,
}

impl Claim {
    fn join(&mut self, fetch: Arc<Fetch>, place: usize, index: usize) {
        let known = self.fetches.iter_mut().find(|(f, _)| f.id == fetch.id);
        match known {
            Some((_, places)) => places.push((place, index)),
            None => self.fetches.push((fetch, vec![(place, index)])),
        }
    }
}

/// A fetch under way or done. Dropping the last reference gives it up.
pub(crate) struct Fetch {
    pub(crate) id: u64,
    pub(crate) owner: OwnerId,
    pub(crate) begun: Instant,
    pub(crate) bytes: u64,
    /// It had less time than a fetch should have.
    pub(crate) rushed: bool,
    pub(crate) landing: Arc<Landing<Landed>>,
    fetches: Arc<Fetches>,
    keys: Arc<[BlockKey]>,
    task: AbortHandle,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.task.abort();
        if self.landing.landed().is_none() {
            self.fetches.forget(self.id, &self.keys);
        }
    }
}

/// What came of a fetch.
pub(crate) struct Landed {
    /// For each of its blocks.
    pub(crate) arrivals: Vec<Arrival>,
    /// It took all the time it had.
    pub(crate) ran_out: bool,
    /// Nothing came from the peer meanwhile, not even for others.
    pub(crate) silent: bool,
    /// Keeps new blocks from being evicted before the loads have pinned them.
    _pins: Vec<ReadSlot>,
}

/// What became of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was verified and lies here now.
    New(Location),
    /// It came, but was not kept: it is here already, or everything was dropped meanwhile.
    Spare,
    /// It did not come.
    Failed(FetchOutcome),
}

/// The fetches that are under way, by the blocks they bring.
#[derive(Default)]
pub(crate) struct Fetches(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    /// The newest fetch of each block, and the block's place in it.
    running: HashMap<BlockKey, (u64, usize, Weak<Fetch>)>,
}

impl Fetches {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: u64, keys: &[BlockKey]) {
        let mut table = self.lock();
        for key in keys {
            if table.running.get(key).is_some_and(|(of, ..)| *of == id) {
                table.running.remove(key);
            }
        }
    }

    /// Fetches under way.
    #[cfg(test)]
    pub(crate) fn blocks(&self) -> usize {
        self.lock().running.len()
    }
}

impl Table {
    /// The fetch that brings the block, unless it is late.
    fn joinable(&self, key: BlockKey, late: &dyn Fn(u64) -> bool) -> Option<(Arc<Fetch>, usize)> {
        let (id, place, fetch) = self.running.get(&key)?;
        // A late one is held by whoever says so, so no reference is the last one here.
        if late(*id) {
            return None;
        }
        Some((fetch.upgrade()?, *place))
    }
}

/// Sees to it that the blocks come: by joining fetches that bring them, and by a new one for the rest.
pub(crate) fn claim(shared: &Arc<Shared>, order: Order<'_>) -> Claim {
    let mut claim = Claim::default();
    let mut table = shared.fetches.lock();
    let keys: Vec<BlockKey> = order.blocks.iter().map(|(i, _)| order.keys[*i]).collect();
    // Looked up under the lock: a fetch leaves the table only after its blocks are found.
    let found = shared.core.find(&keys);
    let mut open = Vec::new();
    for ((index, location), (key, here)) in order.blocks.iter().zip(keys.iter().zip(found)) {
        if here.is_some() {
            claim.here.push(*index);
        } else if let Some((fetch, place)) = table.joinable(*key, order.late) {
            claim.join(fetch, place, *index);
        } else {
            open.push((*index, *location));
        }
    }
    let resets = shared.core.resets();
    let slots = shared
        .core
        .reserve(shared.now(), open.len(), &*shared.tier, &shared.counters);
    claim.short = slots.len() < open.len();
    open.truncate(slots.len());
    if open.is_empty() {
        return claim;
    }
    table.last += 1;
    let fetch = start(shared, &order, table.last, &open, slots, resets);
    for (place, key) in fetch.keys.iter().enumerate() {
        let entry = (fetch.id, place, Arc::downgrade(&fetch));
        table.running.insert(*key, entry);
    }
    let places = open
        .iter()
        .enumerate()
        .map(|(place, (index, _))| (place, *index));
    claim.started = Some(fetch.id);
    claim.fetches.push((fetch, places.collect()));
    claim
}

/// Starts the task of a fetch.
fn start(
    shared: &Arc<Shared>,
    order: &Order<'_>,
    id: u64,
    blocks: &[(usize, Location)],
    slots: Vec<WriteSlot>,
    resets: u64,
) -> Arc<Fetch> {
    let keys: Arc<[BlockKey]> = blocks.iter().map(|(i, _)| order.keys[*i]).collect();
    let bytes = slots.iter().map(|slot| slot.bytes().len() as u64).sum();
    let wants = blocks
        .iter()
        .zip(slots)
        .map(|((index, location), into)| Want {
            location: *location,
            key: order.keys[*index],
            into,
        });
    let whole = shared.config.fetch_timeout;
    let usual = order
        .peer
        .takes(bytes)
        .map_or(FAIR_CHANCE, |usual| usual * 2);
    let request = Request {
        fair: usual.clamp(FAIR_CHANCE.min(whole), whole),
        shared: shared.clone(),
        prefix: order.keys.clone(),
        indices: blocks.iter().map(|(index, _)| *index).collect(),
        owner: order.owner,
        peer: order.peer.clone(),
        patience: order.patience,
        resets,
    };
    let wants: Vec<Want> = wants.collect();
    let (landing, under_way) = Landing::new();
    let all = keys.clone();
    let task = tokio::spawn(async move {
        let shared = request.shared.clone();
        let landed = request.run(wants).await;
        shared.fetches.forget(id, &all);
        under_way.land(landed);
    });
    Arc::new(Fetch {
        id,
        owner: order.owner,
        begun: Instant::now(),
        bytes,
        rushed: order.patience < whole,
        landing,
        fetches: shared.fetches.clone(),
        keys,
        task: task.abort_handle(),
    })
}

/// A fetch's task.
struct Request {
    shared: Arc<Shared>,
    prefix: Arc<[BlockKey]>,
    /// Where in the prefix each of its blocks is.
    indices: Vec<usize>,
    owner: OwnerId,
    peer: Peer,
    patience: Duration,
    /// With so much time the peer should have answered.
    fair: Duration,
    resets: u64,
}

impl Request {
    async fn run(self, wants: Vec<Want>) -> Landed {
        let begun = Instant::now();
        let fetched = self.by_any(wants).await;
        let ran_out = begun.elapsed() >= self.patience;
        let mut links = self.peer.endpoints.iter().map(|at| &at.link);
        let silent = !links.any(|link| link.delivered_since(begun));
        let fair = !ran_out || self.patience >= self.fair;
        self.judge(&fetched, silent && fair);
        Landed {
            ran_out,
            silent,
            ..self.keep(fetched)
        }
    }

    /// Fetches through the first endpoint, and what it does not reach through the next ones: memory
    /// that should be shared may not be, between containers for instance.
    async fn by_any(&self, wants: Vec<Want>) -> Vec<Fetched> {
        let until = Instant::now() + self.patience;
        let named: Vec<_> = wants.iter().map(|want| (want.location, want.key)).collect();
        let mut fetched: Vec<Fetched> = wants.into_iter().map(unreached).collect();
        for at in &self.peer.endpoints {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let stages = self.shared.transports[at.transport].stages();
            let is_open = |(place, got): &(usize, Fetched)| {
                let readable = stages || named[*place].0.tier == Tier::Host;
                readable && got.outcome == FetchOutcome::Unreachable
            };
            let all = fetched.into_iter().enumerate();
            let (open, mut done): (Vec<_>, Vec<_>) = all.partition(is_open);
            let (places, slots): (Vec<usize>, Vec<WriteSlot>) = open
                .into_iter()
                .map(|(place, got)| (place, got.into))
                .unzip();
            let wants = places.iter().zip(slots).map(|(place, into)| {
                let (location, key) = named[*place];
                Want {
                    location,
                    key,
                    into,
                }
            });
            let wants: Vec<Want> = wants.collect();
            if !wants.is_empty() {
                let again = self.through(at, wants, left).await;
                done.extend(places.into_iter().zip(again));
            }
            done.sort_unstable_by_key(|(place, _)| *place);
            fetched = done.into_iter().map(|(_, got)| got).collect();
        }
        fetched
    }

    /// Fetches through one endpoint, measures how fast that was, and tells the peer of what came
    /// damaged.
    async fn through(&self, at: &Endpoint, wants: Vec<Want>, left: Duration) -> Vec<Fetched> {
        let named: Vec<_> = wants.iter().map(|want| (want.location, want.key)).collect();
        let size = |into: &WriteSlot| into.bytes().len() as u64;
        let delivery = at
            .link
            .begin(wants.iter().map(|want| size(&want.into)).sum());
        let transport = &self.shared.transports[at.transport];
        let fetched = transport.fetch(&at.uri, wants, left).await;
        let came = |got: &&Fetched| matches!(got.outcome, FetchOutcome::Fetched(_));
        let bytes = fetched.iter().filter(came).map(|got| size(&got.into));
        delivery.arrived(bytes.sum());
        for ((location, key), got) in named.into_iter().zip(&fetched) {
            if got.outcome == FetchOutcome::Corrupt {
                let peer = &self.peer.name;
                tracing::warn!(%key, peer, "a block came damaged; its owner is told");
                self.shared.counters.reports_sent.increment(1);
                transport.report(&at.uri, Suspect { location, key });
            }
        }
        fetched
    }

    /// Counts the outcomes. A peer that did not answer is left out for a while, if that is `certain`.
    fn judge(&self, fetched: &[Fetched], certain: bool) {
        let counters = &self.shared.counters;
        let mut answered = false;
        for got in fetched {
            match got.outcome {
                FetchOutcome::Fetched(_) => {
                    let bytes = got.into.bytes().len() as u64;
                    counters.fetched_bytes.increment(bytes);
                }
                FetchOutcome::Stale => counters.fetched_stale.increment(1),
                FetchOutcome::Corrupt => counters.fetched_corrupt.increment(1),
                FetchOutcome::Unreachable => counters.fetched_unreachable.increment(1),
            }
            answered |= got.outcome != FetchOutcome::Unreachable;
        }
        let now = self.shared.now();
        if answered {
            self.shared.peers.succeeded(now, self.owner);
        } else if certain {
            self.shared.peers.failed(now, self.owner);
        }
    }

    /// Fetched blocks become blocks of this node: new replicas for the cluster. The transport has
    /// verified their bytes, so they are pinned as they are. After a reset that came meanwhile they
    /// are not kept.
    fn keep(&self, fetched: Vec<Fetched>) -> Landed {
        let mut arrivals = Vec::with_capacity(fetched.len());
        let mut filled: Vec<(usize, WriteSlot, Checksum)> = Vec::new();
        for (index, got) in self.indices.iter().zip(fetched) {
            arrivals.push(match got.outcome {
                FetchOutcome::Fetched(checksum) => {
                    filled.push((*index, got.into, checksum));
                    Arrival::Spare
                }
                outcome => Arrival::Failed(outcome),
            });
        }
        let Shared { core, tier, .. } = &*self.shared;
        let now = self.shared.now();
        let new = core.commit_fetched(now, &self.prefix, filled, &**tier, self.resets);
        let mut pins = Vec::with_capacity(new.len());
        for (index, location) in new {
            let place = self.indices.partition_point(|before| *before < index);
            arrivals[place] = Arrival::New(location);
            pins.extend(tier.pin(location, self.prefix[index]));
        }
        Landed {
            arrivals,
            ran_out: false,
            silent: false,
            _pins: pins,
        }
    }
}

fn unreached(want: Want) -> Fetched {
    Fetched {
        outcome: FetchOutcome::Unreachable,
        into: want.into,
    }
}
