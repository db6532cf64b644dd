//! Who could give the blocks that a load misses, and where they have them.
//!
//! Looks into the snapshot and the table of peers; asks nobody.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use flexkv_block::{BlockKey, Location, Tier};
use flexkv_index::{OwnerId, OwnerRun};

use crate::Shared;
use crate::peers::Peer;
use crate::plan::{self, Holders, SOURCES_MAX, Source};

/// Owners of one block that are looked at, unless they have other blocks that fewer hold.
const HOLDERS_MAX: u8 = 8;

/// An owner of blocks that are missed.
pub(crate) struct Holder {
    pub(crate) owner: OwnerId,
    pub(crate) peer: Peer,
    /// Where it has each block of the prefix, if it does.
    pub(crate) locations: Vec<Option<Location>>,
    /// Decides between equals.
    pub(crate) spread: u64,
}

impl Holder {
    /// The owner as the planner sees it, for a load that waits for `own` bytes in `asked` pieces.
    pub(crate) fn source(&self, own: u64, asked: usize) -> Source {
        let speed = self.peer.speed();
        let distance = self.peer.distance;
        Source {
            distance,
            rate: speed.rate.unwrap_or_else(|| distance.usual_rate()),
            known: speed.rate.is_some(),
            hope: speed.rate.unwrap_or(f64::INFINITY),
            in_flight: speed.in_flight.max(own),
            own,
            asked,
            spread: self.spread,
        }
    }
}

/// The owners of the blocks of `keys` that are `missing`, without those `left_out`; the most useful
/// ones if there are many.
pub(crate) fn find(
    shared: &Shared,
    keys: &[BlockKey],
    missing: &[bool],
    left_out: &[OwnerId],
) -> Vec<Holder> {
    let table = shared.peers.table();
    let mut excluded = table.excluded;
    excluded.insert(shared.own);
    left_out.iter().for_each(|owner| excluded.insert(*owner));
    let mut runs = Vec::new();
    shared.snapshot.replicas(keys, &excluded, &mut runs);
    let mut owned: BTreeMap<OwnerId, Vec<OwnerRun>> = BTreeMap::new();
    for run in runs {
        owned.entry(run.owner).or_default().push(run);
    }
    let seed = shared.id.incarnation ^ keys.last().map_or(0, |key| key.fingerprint());
    let mut ranked: Vec<_> = owned
        .iter()
        .filter_map(|(owner, runs)| {
            let peer = table.peers.get(owner)?;
            let misses = |run: &OwnerRun| of(run, missing).iter().filter(|miss| **miss).count();
            let useful: usize = runs.iter().map(misses).sum();
            let rank = (peer.distance, Reverse(useful), mix(seed, *owner));
            (useful > 0).then_some((rank, *owner, peer, runs))
        })
        .collect();
    ranked.sort_unstable_by_key(|(rank, ..)| *rank);
    let mut met = vec![0u8; keys.len()];
    let mut found = Vec::new();
    for ((.., spread), owner, peer, runs) in ranked {
        if found.len() == SOURCES_MAX || !adds(runs, missing, &mut met) {
            continue;
        }
        let all = OwnerRun {
            owner,
            start: 0,
            len: keys.len(),
        };
        let mut locations = Vec::with_capacity(keys.len());
        shared.snapshot.locate(keys, all, &mut locations);
        found.push(Holder {
            owner,
            peer: peer.clone(),
            locations,
            spread,
        });
    }
    found
}

/// Whether an owner with these runs adds to the choice for a missing block; then counts it.
fn adds(runs: &[OwnerRun], missing: &[bool], met: &mut [u8]) -> bool {
    let scarce = |(missing, met): (&bool, &u8)| *missing && *met < HOLDERS_MAX;
    let adds = |run: &OwnerRun| of(run, missing).iter().zip(of(run, met)).any(scarce);
    if !runs.iter().any(adds) {
        return false;
    }
    for run in runs {
        let met = &mut met[run.start..run.start + run.len];
        met.iter_mut().for_each(|met| *met = met.saturating_add(1));
    }
    true
}

fn of<'a, T>(run: &OwnerRun, all: &'a [T]) -> &'a [T] {
    &all[run.start..run.start + run.len]
}

/// Who of `holders` has block `index`: those that have it in memory if there are any, else those that
/// would have to bring it there.
pub(crate) fn holders(holders: &[Holder], index: usize) -> Holders {
    let set_of = |tier: Tier| {
        let having = holders.iter().enumerate();
        let having = having.filter(|(_, it)| it.locations[index].is_some_and(|at| at.tier == tier));
        having.fold(0, |set, (place, _)| set | plan::bit(place))
    };
    match set_of(Tier::Host) {
        0 => set_of(Tier::Ssd),
        memory => memory,
    }
}

/// Who has each of `count` blocks.
pub(crate) fn who_has(all: &[Holder], count: usize) -> Vec<Holders> {
    (0..count).map(|index| holders(all, index)).collect()
}

/// Spreads readers and prompts over owners.
fn mix(seed: u64, owner: OwnerId) -> u64 {
    let mut x = seed ^ u64::from(owner.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 31)
}
