//! Loading a prefix: local blocks are verified and pinned, the others fetched from their owners.
//!
//! Rounds of match, fetch and commit go on until everything is here, nobody else has the rest, or
//! the deadline comes. A verified leading part is always kept. Knows no transport's protocol.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location};
use flexkv_index::{MatchOptions, OwnerId, OwnerRun, PrefixMatch};
use flexkv_ports::{BlockView, FetchOutcome, Fetched, Loaded, ReadSlot, Want, WriteSlot};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::Shared;
use crate::counters::Miss;
use crate::peers::{Endpoint, PeerTable};
use crate::tickets::Held;

/// A load gives up after this many rounds of fetching.
const ROUNDS_MAX: usize = 8;

/// What one round asks of one peer: indices into the prefix and where the peer has them.
type Plan = BTreeMap<OwnerId, Vec<(usize, Location)>>;

/// A fetched block: its index, buffer and checksum.
type Arrived = (usize, WriteSlot, Checksum);

/// One load, from start to end.
pub(crate) struct Load {
    shared: Arc<Shared>,
    keys: Arc<[BlockKey]>,
    deadline: Instant,
    pins: Vec<Option<ReadSlot>>,
    /// Blocks that were fetched by this load.
    fetched: Vec<bool>,
    /// Owners that failed this load in some way.
    failed: Vec<OwnerId>,
    /// Why the first block that is missing is missing.
    reason: Miss,
}

impl Load {
    pub(crate) fn new(shared: Arc<Shared>, keys: Arc<[BlockKey]>, deadline: Instant) -> Self {
        let blocks = keys.len();
        Self {
            shared,
            keys,
            deadline,
            pins: std::iter::repeat_with(|| None).take(blocks).collect(),
            fetched: vec![false; blocks],
            failed: Vec::new(),
            reason: Miss::Absent,
        }
    }

    /// Runs the load to its end.
    pub(crate) async fn run(mut self) -> Held {
        self.pin_local().await;
        for _ in 0..ROUNDS_MAX {
            if self.pins.iter().all(Option::is_some) {
                break;
            }
            if Instant::now() >= self.deadline {
                self.reason = Miss::Deadline;
                break;
            }
            let plan = self.plan();
            if plan.is_empty() {
                break;
            }
            if !self.fetch(plan).await {
                break;
            }
        }
        self.finish()
    }

    /// Pins and verifies what this node holds.
    async fn pin_local(&mut self) {
        let found = self.shared.core.find(&self.keys);
        for (i, location) in found.into_iter().enumerate() {
            let Some(location) = location else { continue };
            if self.pins[i].is_some() {
                continue;
            }
            let Ok(slot) = self.shared.tier.pin(location, self.keys[i]) else {
                continue;
            };
            if slot.verify() {
                self.pins[i] = Some(slot);
            } else {
                self.shared.counters.local_corrupt.increment(1);
                tracing::warn!(key = %self.keys[i], "a block here changed its bytes; dropped");
                self.shared
                    .core
                    .drop_corrupt(self.shared.now(), slot, &*self.shared.tier);
                self.reason = Miss::Corrupt;
            }
            // Hashing a block takes up to a millisecond: let other tasks run in between.
            tokio::task::yield_now().await;
        }
    }

    /// Who could give the missing blocks: the longest runs first, without owners that failed.
    fn plan(&mut self) -> Plan {
        let table = self.shared.peers.table();
        let mut excluded = table.excluded;
        self.failed.iter().for_each(|owner| excluded.insert(*owner));
        let options = MatchOptions {
            prefer: Some(self.shared.own),
            exclude: &excluded,
        };
        let mut found = PrefixMatch::default();
        self.shared
            .snapshot
            .match_prefix(&self.keys, &options, &mut found);
        let mut plan = Plan::new();
        let mut locations = Vec::new();
        for run in &found.runs {
            if run.owner == self.shared.own || !has_missing(&self.pins, run) {
                continue;
            }
            locations.clear();
            self.shared
                .snapshot
                .locate(&self.keys, *run, &mut locations);
            let wants = plan.entry(run.owner).or_default();
            for (i, location) in (run.start..run.start + run.len).zip(&locations) {
                if self.pins[i].is_none()
                    && let Some(location) = location
                {
                    wants.push((i, *location));
                }
            }
        }
        plan.retain(|_, wants| !wants.is_empty());
        plan
    }

    /// Fetches what was planned, from all peers at once; says whether another round makes sense.
    async fn fetch(&mut self, plan: Plan) -> bool {
        let count = plan.values().map(Vec::len).sum();
        let shared = self.shared.clone();
        let resets = shared.core.resets();
        let mut slots = shared
            .core
            .reserve(shared.now(), count, &*shared.tier, &shared.counters)
            .into_iter();
        let table = Arc::clone(&shared.peers.table());
        let mut fetches = Vec::new();
        // Slots go to the earliest blocks first: those are the useful ones.
        let mut order: Vec<(usize, OwnerId, Location)> = plan
            .into_iter()
            .flat_map(|(owner, wants)| wants.into_iter().map(move |(i, at)| (i, owner, at)))
            .collect();
        order.sort_unstable_by_key(|(i, ..)| *i);
        let short = slots.len() < count;
        let mut wants: BTreeMap<OwnerId, (Vec<usize>, Vec<Want>)> = BTreeMap::new();
        for ((i, owner, location), into) in order.into_iter().zip(&mut slots) {
            let (indices, list) = wants.entry(owner).or_default();
            indices.push(i);
            list.push(Want {
                location,
                key: self.keys[i],
                into,
            });
        }
        if short {
            self.reason = Miss::NoSpace;
        }
        for (owner, (indices, list)) in wants {
            fetches.push(self.fetch_from(owner, &table, indices, list));
        }
        let mut arrived: Vec<Arrived> = Vec::new();
        for (owner, indices, fetched) in join_all(fetches).await {
            arrived.extend(self.sort_out(owner, indices, fetched));
        }
        self.keep(arrived, resets);
        self.pin_local().await;
        !short
    }

    /// The fetch from one peer.
    fn fetch_from(
        &self,
        owner: OwnerId,
        table: &PeerTable,
        indices: Vec<usize>,
        wants: Vec<Want>,
    ) -> impl Future<Output = (OwnerId, Vec<usize>, Vec<Fetched>)> + use<> {
        let shared = self.shared.clone();
        let peer = table.peers.get(&owner);
        let endpoints = peer.map_or_else(Vec::new, |peer| peer.endpoints.clone());
        let left = self.deadline.saturating_duration_since(Instant::now());
        let patience: Duration = left.min(shared.config.fetch_timeout);
        async move {
            let fetched = fetch_by_any(&shared, &endpoints, wants, patience).await;
            (owner, indices, fetched)
        }
    }

    /// Counts the outcomes of one peer's fetch and returns what arrived.
    fn sort_out(
        &mut self,
        owner: OwnerId,
        indices: Vec<usize>,
        fetched: Vec<Fetched>,
    ) -> Vec<Arrived> {
        let counters = &self.shared.counters;
        let mut arrived = Vec::new();
        let (mut failed, mut unreachable) = (None, false);
        for (i, fetched) in indices.into_iter().zip(fetched) {
            let (counter, reason) = match fetched.outcome {
                FetchOutcome::Fetched(checksum) => {
                    counters
                        .fetched_bytes
                        .increment(fetched.into.bytes().len() as u64);
                    arrived.push((i, fetched.into, checksum));
                    continue;
                }
                FetchOutcome::Stale => (&counters.fetched_stale, Miss::Stale),
                FetchOutcome::Corrupt => (&counters.fetched_corrupt, Miss::Corrupt),
                FetchOutcome::Unreachable => {
                    unreachable = true;
                    (&counters.fetched_unreachable, Miss::Unreachable)
                }
            };
            counter.increment(1);
            failed = failed.or(Some(reason));
        }
        let now = self.shared.now();
        if unreachable {
            self.shared.peers.failed(now, owner);
        } else {
            self.shared.peers.succeeded(now, owner);
        }
        if let Some(reason) = failed {
            self.failed.push(owner);
            self.reason = reason;
        }
        arrived
    }

    /// Fetched blocks become blocks of this node: new replicas for the cluster. The transport has
    /// verified their bytes, so they are pinned as they are. After a reset that came meanwhile they
    /// are not kept.
    fn keep(&mut self, mut arrived: Vec<Arrived>, resets: u64) {
        arrived.sort_unstable_by_key(|(i, ..)| *i);
        arrived.iter().for_each(|(i, ..)| self.fetched[*i] = true);
        let Shared { core, tier, .. } = &*self.shared;
        let now = self.shared.now();
        for (i, location) in core.commit_fetched(now, &self.keys, arrived, &**tier, resets) {
            self.pins[i] = tier.pin(location, self.keys[i]).ok();
        }
    }

    /// The leading part that is here, and why it is not longer.
    fn finish(self) -> Held {
        let counters = &self.shared.counters;
        let asked = self.keys.len();
        let pins: Vec<ReadSlot> = self.pins.into_iter().map_while(|pin| pin).collect();
        let remote = self.fetched[..pins.len()]
            .iter()
            .filter(|fetched| **fetched)
            .count();
        let local = pins.len() - remote;
        counters.hit_local.increment(local as u64);
        counters.hit_remote.increment(remote as u64);
        if pins.len() < asked {
            counters.missed(self.reason, 1);
            counters.missed(Miss::Broken, asked - pins.len() - 1);
        }
        self.shared.core.touch(&self.keys[..pins.len()]);
        let blocks = pins
            .iter()
            .map(|pin| BlockView {
                key: pin.key(),
                checksum: pin.checksum(),
                bytes: pin.bytes().clone(),
            })
            .collect();
        Held::new(
            Loaded {
                blocks,
                local,
                remote,
            },
            pins,
        )
    }
}

/// Fetches through the first endpoint, and what it does not reach through the next ones: memory that
/// should be shared may not be, between containers for instance.
async fn fetch_by_any(
    shared: &Shared,
    endpoints: &[Endpoint],
    wants: Vec<Want>,
    patience: Duration,
) -> Vec<Fetched> {
    let until = Instant::now() + patience;
    let named: Vec<_> = wants.iter().map(|want| (want.location, want.key)).collect();
    let mut fetched: Vec<Fetched> = wants.into_iter().map(unreached).collect();
    for at in endpoints {
        let left = until.saturating_duration_since(Instant::now());
        let is_open = |got: &Fetched| got.outcome == FetchOutcome::Unreachable;
        if left.is_zero() || !fetched.iter().any(is_open) {
            break;
        }
        let all = fetched.into_iter().enumerate();
        let (open, mut done): (Vec<_>, Vec<_>) = all.partition(|(_, got)| is_open(got));
        let places: Vec<usize> = open.iter().map(|(place, _)| *place).collect();
        let wants = open.into_iter().map(|(place, got)| {
            let (location, key) = named[place];
            let into = got.into;
            Want {
                location,
                key,
                into,
            }
        });
        let transport = &shared.transports[at.transport];
        let again = transport.fetch(&at.uri, wants.collect(), left).await;
        done.extend(places.into_iter().zip(again));
        done.sort_unstable_by_key(|(place, _)| *place);
        fetched = done.into_iter().map(|(_, got)| got).collect();
    }
    fetched
}

fn unreached(want: Want) -> Fetched {
    Fetched {
        outcome: FetchOutcome::Unreachable,
        into: want.into,
    }
}

fn has_missing(pins: &[Option<ReadSlot>], run: &OwnerRun) -> bool {
    pins[run.start..run.start + run.len]
        .iter()
        .any(Option::is_none)
}
