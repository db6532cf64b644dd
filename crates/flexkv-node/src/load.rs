//! Loading a prefix: local blocks are brought to memory, verified and pinned, the others fetched from
//! their owners.
//!
//! Blocks are asked for from front to back, of all owners at once, a piece at a time, until everything
//! is here, nobody else has the rest, computing it would be faster, or the deadline comes. What fails
//! or takes too long is asked of another owner. A verified leading part is always kept. Knows no
//! transport's protocol, and leaves it to the planner whom to ask for what.

mod room;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Location, Tier};
use flexkv_index::OwnerId;
use flexkv_ports::{BlockView, BoxFuture, FetchOutcome, LoadLimits, Loaded, ReadSlot};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};

use crate::Shared;
use crate::ahead::Ahead;
use crate::counters::Miss;
use crate::fetch::{self, Arrival, Claim, Fetch, Order, Places};
use crate::plan::{self, Block, Holders, Piece, Source};
use crate::sources::{self, Holder};
use crate::tickets::Held;

/// A load looks for owners at most so often.
const ROUNDS_MAX: usize = 8;
/// A block is asked for at most so often.
const ATTEMPTS_MAX: u8 = 8;
/// A fetch is late when another owner would be done in half the time that it still needs, and this.
const LATE_SLACK: Duration = Duration::from_millis(5);
/// A fetch should be here after so many times what the owner's rate says.
const LATE_FACTOR: f64 = 1.25;
/// The shortest pause before the cost of going on is looked at again.
const WEIGH_PAUSE_MIN: Duration = Duration::from_millis(2);

/// A fetch that this load waits for.
struct Awaited {
    fetch: Arc<Fetch>,
    places: Places,
    /// Another load began it.
    joined: bool,
    /// When it should be done, if that can be told.
    expected: Option<Instant>,
    /// It takes so long that its blocks may be asked of others too.
    late: bool,
}

/// One load, from start to end.
pub(crate) struct Load {
    shared: Arc<Shared>,
    keys: Arc<[BlockKey]>,
    /// Ends once the blocks of the staged tier are here.
    ahead: Option<Ahead>,
    deadline: Instant,
    /// Seconds that computing a block takes, if the engine told.
    recompute: Option<f64>,
    pins: Vec<Option<ReadSlot>>,
    /// Blocks that were fetched.
    fetched: Vec<bool>,
    /// Blocks that this load brought from the staged tier.
    staged: Vec<bool>,
    /// How often each block was asked for.
    attempts: Vec<u8>,
    /// Why each block is not here.
    reasons: Vec<Miss>,
    /// Blocks from here on are not fetched, as computing them is faster.
    limit: usize,
    /// Slots have run out.
    full: bool,
    /// When fetches were last given up, whose slots then come back.
    given_up: Option<Instant>,
    holders: Vec<Holder>,
    /// Which of them have each block.
    who: Vec<Holders>,
    rounds: usize,
    /// Owners that did not answer this load.
    failed: Vec<OwnerId>,
    /// Where blocks turned out not to be.
    refused: HashSet<(OwnerId, usize, Location)>,
    awaited: BTreeMap<u64, Awaited>,
    landings: FuturesUnordered<BoxFuture<'static, u64>>,
}

impl Load {
    /// `ahead` has brought some of the blocks, or is bringing them.
    pub(crate) fn new(
        shared: Arc<Shared>,
        keys: Arc<[BlockKey]>,
        limits: LoadLimits,
        ahead: Option<Ahead>,
    ) -> Self {
        let blocks = keys.len();
        let recompute = limits.recompute.map(|time| time.as_secs_f64());
        Self {
            shared,
            keys,
            ahead,
            deadline: Instant::now() + limits.deadline,
            recompute,
            pins: std::iter::repeat_with(|| None).take(blocks).collect(),
            fetched: vec![false; blocks],
            staged: vec![false; blocks],
            attempts: vec![0; blocks],
            reasons: vec![Miss::Absent; blocks],
            limit: blocks,
            full: false,
            given_up: None,
            holders: Vec::new(),
            who: vec![0; blocks],
            rounds: 0,
            failed: Vec::new(),
            refused: HashSet::new(),
            awaited: BTreeMap::new(),
            landings: FuturesUnordered::new(),
        }
    }

    /// Runs the load to its end.
    pub(crate) async fn run(mut self) -> Held {
        let all: Vec<usize> = (0..self.keys.len()).collect();
        self.pin_local(&all).await;
        self.bring_local().await;
        self.ahead = None;
        if self.first_missing() < self.limit {
            self.look_around();
            self.fetch().await;
        }
        self.finish()
    }

    /// The first block that is not here.
    fn first_missing(&self) -> usize {
        let here = self.pins.iter().take_while(|pin| pin.is_some());
        here.count()
    }

    /// Pins and verifies those of the blocks that this node holds.
    async fn pin_local(&mut self, blocks: &[usize]) {
        let keys: Vec<BlockKey> = blocks.iter().map(|i| self.keys[*i]).collect();
        let found = self.shared.core.find(&keys);
        for (i, location) in blocks.iter().zip(found) {
            let Some(location) = location else { continue };
            let Ok(slot) = self.shared.tier.pin(location, self.keys[*i]) else {
                continue;
            };
            if slot.verify() {
                self.pins[*i] = Some(slot);
            } else {
                self.shared.drop_corrupt(slot);
                self.reasons[*i] = Miss::Corrupt;
            }
            // Hashing a block takes up to a millisecond: let other tasks run in between.
            tokio::task::yield_now().await;
        }
    }

    /// Brings to memory what this node holds in the staged tier. What cannot be brought is sought at
    /// other owners.
    async fn bring_local(&mut self) {
        let found = self.shared.core.find_in(&self.keys, Tier::Ssd);
        let missing = found.into_iter().enumerate();
        let missing = missing.filter(|(i, _)| self.pins[*i].is_none());
        let (places, wanted): (Vec<usize>, Vec<_>) = missing
            .filter_map(|(i, at)| Some((i, (self.keys[i], at?))))
            .unzip();
        if wanted.is_empty() {
            return;
        }
        let patience = Instant::now() + self.shared.config.fetch_timeout;
        let deadline = self.deadline.min(patience);
        let brought = self.shared.bring(&wanted, deadline).await;
        for (i, pin) in places.into_iter().zip(brought.pins) {
            self.staged[i] = pin.is_some();
            if let (None, Some(reason)) = (&pin, brought.reason) {
                self.reasons[i] = reason;
            }
            self.pins[i] = pin;
        }
    }

    /// Looks for owners of what is missing; says whether there is one of the first such block.
    fn look_around(&mut self) -> bool {
        if self.rounds == ROUNDS_MAX {
            return false;
        }
        self.rounds += 1;
        let missing: Vec<bool> = self.pins.iter().map(Option::is_none).collect();
        self.holders = sources::find(&self.shared, &self.keys, &missing, &self.failed);
        for holder in &mut self.holders {
            for (index, location) in holder.locations.iter_mut().enumerate() {
                let refused = |at| self.refused.contains(&(holder.owner, index, at));
                *location = location.filter(|at| !refused(*at));
            }
        }
        self.who = sources::who_has(&self.holders, self.keys.len());
        self.askable(self.first_missing()) != 0
    }

    /// Who may be asked for the block, whether or not it is under way.
    fn askable(&self, index: usize) -> Holders {
        if self.pins[index].is_some() || self.attempts[index] == ATTEMPTS_MAX {
            return 0;
        }
        self.who[index]
    }

    /// Fetches until there is nothing left that could come.
    async fn fetch(&mut self) {
        while self.first_missing() < self.limit {
            let front = self.first_missing();
            if Instant::now() >= self.deadline {
                self.reasons[front] = Miss::Deadline;
                return;
            }
            let weigh_again = self.weigh();
            let late_next = self.ask().await;
            let front = self.first_missing();
            if front >= self.limit {
                return;
            }
            let mut room_next = None;
            if self.full && !self.comes_soon(front) {
                room_next = self.make_room();
                if room_next.is_none() {
                    self.reasons[front] = Miss::NoSpace;
                    return;
                }
            } else if !self.is_awaited(front) && self.askable(front) == 0 {
                if self.look_around() {
                    continue;
                }
                return;
            }
            let due = [weigh_again, late_next, room_next].into_iter().flatten();
            let due = due.fold(self.deadline, Instant::min);
            tokio::select! {
                biased;
                Some(id) = self.landings.next() => self.land(id).await,
                () = sleep_until(due) => self.full &= room_next.is_none(),
            }
            while let Some(Some(id)) = self.landings.next().now_or_never() {
                self.land(id).await;
            }
        }
    }

    fn is_awaited(&self, index: usize) -> bool {
        let brings = |awaited: &Awaited| awaited.places.iter().any(|(_, i)| *i == index);
        self.awaited.values().any(brings)
    }

    /// Asks for as much as may be under way at a time. Says when a fetch will be late, if none comes.
    async fn ask(&mut self) -> Option<Instant> {
        loop {
            let sources = self.sources();
            let wanted = self.wanted();
            let bytes = self.block_bytes();
            match plan::next_piece(&sources, &wanted, bytes) {
                Some(piece) if !self.full => {
                    let claim = self.claim(&piece);
                    self.take(&sources[piece.source], claim).await;
                }
                _ => {
                    let open = wanted.iter().fold(0, |all, holders| all | holders);
                    let (found, next) = self.find_late(&sources, open);
                    if !found {
                        return next;
                    }
                }
            }
        }
    }

    fn block_bytes(&self) -> usize {
        self.shared.tier.shape().block_bytes
    }

    /// The owners as they are now.
    fn sources(&self) -> Vec<Source> {
        let now = Instant::now();
        let source = |holder: &Holder| {
            let asked = self.awaited.values();
            let asked = asked.filter(|awaited| awaited.fetch.owner == holder.owner);
            let own = asked.clone().map(|awaited| awaited.fetch.bytes).sum();
            let mut source = holder.source(own, asked.clone().count());
            for awaited in asked.filter(|awaited| awaited.is_overdue(now)) {
                let age = now.duration_since(awaited.fetch.begun).as_secs_f64();
                source.hope = source.hope.min(awaited.fetch.bytes as f64 / age);
            }
            source
        };
        self.holders.iter().map(source).collect()
    }

    /// Who may be asked for each block now; nobody for what is under way. Ends where nothing can be
    /// had any more, as what comes after that is of no use.
    fn wanted(&self) -> Vec<Holders> {
        let mut wanted: Vec<Holders> = (0..self.limit).map(|i| self.askable(i)).collect();
        let hopeless = |i: &usize| self.pins[*i].is_none() && wanted[*i] == 0;
        let mut end = (0..self.limit).filter(|i| hopeless(i) && !self.is_awaited(*i));
        let end = end.next().unwrap_or(self.limit);
        for awaited in self.awaited.values() {
            let owner = awaited.fetch.owner;
            let place = self.holders.iter().position(|h| h.owner == owner);
            let its = place.map_or(0, plan::bit);
            for (_, index) in awaited.places.iter().filter(|(_, i)| *i < self.limit) {
                wanted[*index] &= if awaited.late { !its } else { 0 };
            }
        }
        wanted.truncate(end);
        wanted
    }

    /// Sees to it that a piece comes.
    fn claim(&self, piece: &Piece) -> Claim {
        let holder = &self.holders[piece.source];
        let at = |index: &usize| Some((*index, holder.locations[*index]?));
        let left = self.deadline.saturating_duration_since(Instant::now());
        // An eighth is kept for asking someone else.
        let patience = (left - left / 8).min(self.shared.config.fetch_timeout);
        let order = Order {
            keys: &self.keys,
            blocks: piece.blocks.iter().filter_map(at).collect(),
            owner: holder.owner,
            peer: &holder.peer,
            patience,
            late: &|id| self.awaited.get(&id).is_some_and(|awaited| awaited.late),
        };
        fetch::claim(&self.shared, order)
    }

    /// Waits from now on for the fetches that bring a piece.
    async fn take(&mut self, source: &Source, claim: Claim) {
        let brought = claim.fetches.iter().flat_map(|(_, places)| places);
        let asked = brought.map(|(_, index)| index).chain(&claim.here);
        asked.for_each(|index| self.attempts[*index] += 1);
        for (fetch, places) in claim.fetches {
            let id = fetch.id;
            if let Some(awaited) = self.awaited.get_mut(&id) {
                awaited.places.extend(places);
                continue;
            }
            let landing = fetch.landing.clone();
            self.landings.push(Box::pin(async move {
                landing.ended().await;
                id
            }));
            let joined = claim.started != Some(id);
            let takes = source.takes(fetch.bytes as f64);
            let takes = Duration::try_from_secs_f64(takes * LATE_FACTOR);
            let takes = takes.unwrap_or(Duration::MAX).saturating_add(LATE_SLACK);
            let expected = fetch.begun.checked_add(takes);
            let expected = expected.filter(|_| source.known && !joined);
            let awaited = Awaited {
                fetch,
                places,
                joined,
                expected,
                late: false,
            };
            self.awaited.insert(id, awaited);
        }
        self.full |= claim.short;
        self.pin_local(&claim.here).await;
        // What was asked for before came meanwhile: from there, or by another load.
        for index in claim.here {
            self.fetched[index] = self.attempts[index] > 1 && self.pins[index].is_some();
        }
    }

    /// Marks fetches as late whose blocks others would bring much sooner, who have nothing else to do
    /// as they are not among those that are `open` to be asked. Says whether there is one, and when
    /// the next might be.
    fn find_late(&mut self, sources: &[Source], open: Holders) -> (bool, Option<Instant>) {
        let now = Instant::now();
        let (mut found, mut next) = (false, None);
        let late: Vec<(u64, Duration)> = self
            .awaited
            .iter()
            .filter(|(_, awaited)| !awaited.late && !self.full)
            .filter_map(|(id, awaited)| Some((*id, self.elsewhere(awaited, sources, open)?)))
            .collect();
        for (id, elsewhere) in late {
            let Some(awaited) = self.awaited.get_mut(&id) else {
                continue;
            };
            let margin = elsewhere.saturating_mul(2) + LATE_SLACK;
            let begun = awaited.fetch.begun;
            let left = match awaited.expected.filter(|at| *at > now) {
                Some(at) => at - now,
                // It takes at least as long again as it did so far.
                None => now - begun,
            };
            if left >= margin {
                awaited.late = true;
                found = true;
            } else {
                let at = begun + margin;
                let at = awaited.expected.map_or(at, |expected| at.max(expected));
                next = next.into_iter().chain([at]).min();
            }
        }
        (found, next)
    }

    /// How long it would take others to bring what a fetch brings, if one of them has time.
    fn elsewhere(&self, awaited: &Awaited, sources: &[Source], open: Holders) -> Option<Duration> {
        let missing = awaited.places.iter().map(|(_, index)| *index);
        let mut missing = missing.filter(|i| *i < self.limit && self.askable(*i) != 0);
        let first = missing.next()?;
        let bytes = (missing.count() + 1) * self.block_bytes();
        let askable = self.askable(first);
        let others = sources.iter().enumerate().filter(|(place, _)| {
            let owner = self.holders[*place].owner;
            askable & plan::bit(*place) != 0 && owner != awaited.fetch.owner
        });
        let idle = |place: usize| sources[place].has_room() && open & plan::bit(place) == 0;
        let idle = others.clone().any(|(place, _)| idle(place));
        let others = others.filter(|(_, source)| source.is_eligible());
        let rate: f64 = others.map(|(_, source)| source.rate).sum();
        idle.then(|| Duration::from_secs_f64(bytes as f64 / rate))
    }

    /// Stops at the block from which on computing is faster, if the engine told how fast it is. Says
    /// when to look again.
    fn weigh(&mut self) -> Option<Instant> {
        let recompute = self.recompute?;
        let sources = self.sources();
        let block = |i: usize| match self.askable(i) {
            0 if self.pins[i].is_some() || self.is_awaited(i) => Block::Here,
            holders => Block::From(holders),
        };
        let blocks: Vec<Block> = (0..self.limit).map(block).collect();
        let cut = plan::worth(&sources, &blocks, self.block_bytes(), recompute);
        let possible = blocks.iter().position(|block| *block == Block::From(0));
        if cut < possible.unwrap_or(self.limit) {
            self.limit = cut;
            self.reasons[cut] = Miss::Recompute;
            self.let_go();
        }
        let left = recompute * (self.limit - self.first_missing().min(self.limit)) as f64;
        let pause = Duration::from_secs_f64(left / 8.0);
        Some(Instant::now() + pause.max(WEIGH_PAUSE_MIN))
    }

    /// Takes what a fetch brought.
    async fn land(&mut self, id: u64) {
        let Some(awaited) = self.awaited.remove(&id) else {
            return;
        };
        // Slots for what another fetch had brought already are free now.
        self.full = false;
        let (arrivals, ran_out, silent) = match awaited.fetch.landing.landed() {
            Some(landed) => (landed.arrivals.clone(), landed.ran_out, landed.silent),
            None => (Vec::new(), false, true),
        };
        let lost = Arrival::Failed(FetchOutcome::Unreachable);
        let fetch = &awaited.fetch;
        // Another load's deadline is no reason to give an owner up.
        let hasty = fetch.rushed && ran_out;
        let nothing = arrivals.iter().all(|arrival| *arrival == lost);
        if nothing && silent && !(awaited.joined && hasty) {
            self.leave_out(fetch.owner);
        }
        let mut spare = Vec::new();
        for (place, index) in &awaited.places {
            if self.pins[*index].is_some() {
                continue;
            }
            match arrivals.get(*place).unwrap_or(&lost) {
                Arrival::New(location) => {
                    let pin = self.shared.tier.pin(*location, self.keys[*index]);
                    self.pins[*index] = pin.ok();
                    self.fetched[*index] = true;
                }
                Arrival::Spare => spare.push(*index),
                Arrival::Failed(outcome) => {
                    self.note(fetch.owner, *index, *outcome);
                    if hasty && *outcome == FetchOutcome::Unreachable {
                        self.reasons[*index] = Miss::Deadline;
                    }
                }
            }
        }
        self.pin_local(&spare).await;
        for index in spare {
            self.fetched[index] = self.pins[index].is_some();
        }
        self.let_go();
    }

    /// The owner did not answer: it is not asked again in this load.
    fn leave_out(&mut self, owner: OwnerId) {
        self.failed.push(owner);
        self.holders.retain(|holder| holder.owner != owner);
        self.who = sources::who_has(&self.holders, self.keys.len());
    }

    /// A block did not come from `owner`.
    fn note(&mut self, owner: OwnerId, index: usize, outcome: FetchOutcome) {
        let (reason, gone) = match outcome {
            FetchOutcome::Stale => (Miss::Stale, true),
            FetchOutcome::Corrupt => (Miss::Corrupt, true),
            FetchOutcome::Fetched(_) | FetchOutcome::Unreachable => (Miss::Unreachable, false),
        };
        self.reasons[index] = reason;
        let place = self.holders.iter().position(|h| h.owner == owner);
        if let Some(place) = place.filter(|_| gone)
            && let Some(location) = self.holders[place].locations[index].take()
        {
            self.who[index] = sources::holders(&self.holders, index);
            self.refused.insert((owner, index, location));
        }
    }

    /// The leading part that is here, and why it is not longer.
    fn finish(self) -> Held {
        let counters = &self.shared.counters;
        let asked = self.keys.len();
        let pins: Vec<ReadSlot> = self.pins.into_iter().map_while(|pin| pin).collect();
        let of = |marks: &[bool]| marks[..pins.len()].iter().filter(|mark| **mark).count();
        let (remote, staged) = (of(&self.fetched), of(&self.staged));
        let local = pins.len() - remote;
        counters.hit_local.increment((local - staged) as u64);
        counters.hit_ssd.increment(staged as u64);
        counters.hit_remote.increment(remote as u64);
        if pins.len() < asked {
            counters.missed(self.reasons[pins.len()], 1);
            counters.missed(Miss::Broken, asked - pins.len() - 1);
        }
        if self.limit < asked {
            counters.stopped_loads.increment(1);
            counters
                .stopped_blocks
                .increment((asked - pins.len()) as u64);
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

impl Awaited {
    /// Whether it should have been here by now, as far as anyone knows.
    fn is_overdue(&self, now: Instant) -> bool {
        self.expected.is_none_or(|at| at < now) && now > self.fetch.begun
    }
}

#[cfg(test)]
mod tests;
