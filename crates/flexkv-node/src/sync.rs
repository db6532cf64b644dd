//! Keeping in step with the cluster: one task publishes what changes here, one follows the others.
//!
//! Both only carry: what to say is the publisher's affair, what it means the follower's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flexkv_block::{BlockKey, Location};
use flexkv_index::{
    FollowerEvent, NodeId, NodeRecord, OwnerId, OwnerRun, PublishAction, PublishOutcome, Publisher,
    PublisherStats, Share, SnapshotStats,
};
use flexkv_ports::{LogCursor, LogEntry, LogRead, Member, MetadataStore, StoreError};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::core::State;
use crate::peers::{Endpoint, Peer};
use crate::plan::Distance;
use crate::reset;
use crate::{Node, Shared};

/// Entries read of one log at a time.
const READ_ENTRIES_MAX: usize = 64;
/// Entries that are applied without letting go of the lock; each has up to 4096 blocks.
const APPLY_ENTRIES_MAX: usize = 4;
/// Pause after the store did not answer.
const STORE_PAUSE: Duration = Duration::from_millis(100);
/// A node counts as changing things for so long after its last change.
const ACTIVE_FOR: Duration = Duration::from_secs(10);
/// Shorter pauses between two readings are not worth a timer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// News that are applied, in bytes, before the peers that came with them are shown and the snapshot is
/// swept: some microseconds' worth. The table of a thousand peers takes longer than a short log.
const NEWS_PER_TURN: usize = 4096;
/// Segments looked at per turn when a peer's blocks are swept out of the snapshot.
const SWEEP_SEGMENTS: usize = 1024;

/// Starts the tasks of a node that has a store.
pub(crate) fn start(shared: &Arc<Shared>) -> Vec<AbortHandle> {
    let Some(store) = shared.store.clone() else {
        return Vec::new();
    };
    let publish = tokio::spawn(publish(shared.clone(), store.clone()));
    let follow = tokio::spawn(follow(shared.clone(), store));
    vec![publish.abort_handle(), follow.abort_handle()]
}

/// Gives the lease up, as far as the store can be reached.
pub(crate) async fn leave(shared: &Shared) {
    let Some(store) = &shared.store else { return };
    let epoch = {
        let state = shared.core.lock();
        state
            .publisher
            .as_ref()
            .and_then(|publisher| publisher.announced().map(|r| r.epoch))
    };
    let Some(epoch) = epoch else { return };
    if let Err(error) = store
        .leave(&shared.id.to_string(), &shared.id.log(epoch))
        .await
    {
        tracing::warn!(node = %shared.id, %error, "left without telling the metadata store");
    }
}

/// Publishes for as long as the node runs.
async fn publish(shared: Arc<Shared>, store: Arc<dyn MetadataStore>) {
    loop {
        let (action, due) = {
            let mut state = shared.core.lock();
            let State {
                publisher,
                residency,
                ..
            } = &mut *state;
            let Some(publisher) = publisher else { return };
            (
                publisher.poll(shared.now(), residency),
                publisher.poll_timeout(),
            )
        };
        if let Some(action) = action {
            let outcome = perform(&shared, &*store, action).await;
            if let Some(publisher) = &mut shared.core.lock().publisher {
                publisher.handle(shared.now(), outcome);
            }
            continue;
        }
        let changed = shared.core.changed.notified();
        match due {
            // A part of a checkpoint that made no entry: let others have the lock.
            Some(at) if at <= shared.now() => tokio::task::yield_now().await,
            Some(at) => {
                // A change may make something due before the renewal that is waited for.
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(shared.started + at) => {}
                    () = changed => {}
                }
            }
            None => changed.await,
        }
    }
}

async fn perform(
    shared: &Shared,
    store: &dyn MetadataStore,
    action: PublishAction,
) -> PublishOutcome {
    if matches!(action, PublishAction::Append { .. }) {
        shared.counters.publish_appends.increment(1);
    }
    carry_out(store, action).await.unwrap_or_else(|error| {
        shared.counters.store_errors.increment(1);
        tracing::debug!(node = %shared.id, %error, "publishing failed");
        match error {
            StoreError::LogLost { .. } => PublishOutcome::LogLost,
            StoreError::Unavailable { .. } => PublishOutcome::Unavailable,
            StoreError::Denied { .. } => PublishOutcome::Denied,
            StoreError::Full { .. } => PublishOutcome::Full,
        }
    })
}

/// Asks of the store what a publisher wants.
///
/// # Errors
/// What the store says.
pub async fn carry_out(
    store: &dyn MetadataStore,
    action: PublishAction,
) -> Result<PublishOutcome, StoreError> {
    match action {
        PublishAction::Append {
            log,
            entries,
            create,
            ttl,
        } => {
            let entry = |(sequence, bytes)| LogEntry { sequence, bytes };
            let entries: Vec<LogEntry> = entries.into_iter().map(entry).collect();
            store.append(&log, &entries, create, ttl).await?;
            Ok(PublishOutcome::Done)
        }
        PublishAction::Renew {
            name,
            record,
            log,
            ttl,
        } => {
            let renewal = store.renew(&name, record, &log, ttl).await?;
            Ok(PublishOutcome::Renewed {
                lease_kept: renewal.lease_kept,
                log_kept: renewal.log_kept,
            })
        }
        PublishAction::Retire { log, ttl } => {
            store.retire(&log, ttl).await?;
            Ok(PublishOutcome::Done)
        }
    }
}

/// Follows for as long as the node runs.
async fn follow(shared: Arc<Shared>, store: Arc<dyn MetadataStore>) {
    let mut members_due = Instant::now();
    loop {
        if Instant::now() >= members_due {
            let began = Instant::now();
            match store.members().await {
                Ok(members) => {
                    let members = reset::heed(&shared, &*store, members).await;
                    apply_members(&shared, members);
                    sweep(&shared).await;
                }
                Err(error) => complain(&shared, &error),
            }
            members_due = began + members_interval(&shared);
        }
        shared.peers.tick(shared.now());
        let began = Instant::now();
        let cursors = cursors(&shared);
        let wait = members_due.saturating_duration_since(Instant::now());
        match store.read(&cursors, READ_ENTRIES_MAX, wait).await {
            Ok(reads) => apply_reads(&shared, reads).await,
            Err(error) => {
                complain(&shared, &error);
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
        let pause = share(&shared)
            .read_interval()
            .saturating_sub(began.elapsed());
        if pause >= PAUSE_MIN {
            tokio::time::sleep(pause).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// This node's share of the store at the moment, which the publisher is told too.
fn share(shared: &Shared) -> Share {
    let mut state = shared.core.lock();
    let (nodes, active) = state.follower.cluster(shared.now(), ACTIVE_FOR);
    let count = |n: usize| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
    let share = Share {
        bytes_per_second: shared.config.store_bytes_per_second,
        nodes: count(nodes),
        active: count(active),
    };
    if let Some(publisher) = &mut state.publisher {
        publisher.set_share(share);
        let interval = publisher.interval();
        shared.counters.batch_interval.set(interval.as_secs_f64());
        let over = publisher.stats().over_budget;
        shared.counters.over_budget.absolute(over);
    }
    share
}

/// When to list the members again: soon if someone is missing, else as often as may be.
fn members_interval(shared: &Shared) -> Duration {
    let wanted = shared.config.members_interval;
    if shared.core.lock().follower.misses_someone() {
        return wanted;
    }
    share(shared).members_interval(wanted)
}

fn complain(shared: &Shared, error: &StoreError) {
    shared.counters.store_errors.increment(1);
    tracing::debug!(node = %shared.id, %error, "following failed");
}

fn cursors(shared: &Shared) -> Vec<LogCursor> {
    let cursors = shared.core.lock().follower.cursors();
    cursors
        .into_iter()
        .map(|(log, after)| LogCursor { log, after })
        .collect()
}

fn apply_members(shared: &Shared, members: Vec<Member>) {
    let members: Vec<(String, Bytes)> = members.into_iter().map(|m| (m.name, m.record)).collect();
    let mut state = shared.core.lock();
    let State {
        follower, writer, ..
    } = &mut *state;
    follower.members(shared.now(), &members, writer);
    settle(shared, &mut state);
    show_peers(shared, &mut state);
}

async fn apply_reads(shared: &Shared, reads: Vec<LogRead>) {
    let mut news = 0;
    for read in reads {
        let pair = |entry: LogEntry| (entry.sequence, entry.bytes);
        let entries: Vec<(u64, Bytes)> = read.entries.into_iter().map(pair).collect();
        for part in entries.chunks(APPLY_ENTRIES_MAX) {
            apply_part(shared, &read.log, part);
            news += part.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
            let full = part.len() == APPLY_ENTRIES_MAX;
            if full || news >= NEWS_PER_TURN {
                end_turn(shared);
                news = 0;
            }
            if full {
                tokio::task::yield_now().await;
            }
        }
    }
    end_turn(shared);
    sweep(shared).await;
}

/// Sweeps until nothing of removed peers is left: there may be no news for long.
async fn sweep(shared: &Shared) {
    while !shared.core.lock().writer.sweep(SWEEP_SEGMENTS) {
        tokio::task::yield_now().await;
    }
}

fn apply_part(shared: &Shared, log: &str, entries: &[(u64, Bytes)]) {
    let mut state = shared.core.lock();
    let State {
        follower, writer, ..
    } = &mut *state;
    follower.entries(shared.now(), log, entries, writer);
    settle(shared, &mut state);
}

/// Sweeps some of the snapshot, and shows the peers that came with the news.
fn end_turn(shared: &Shared) {
    let mut state = shared.core.lock();
    state.writer.sweep(SWEEP_SEGMENTS);
    show_peers(shared, &mut state);
}

/// After the follower was told something: counts what happened.
fn settle(shared: &Shared, state: &mut State) {
    for event in state.follower.take_events() {
        note(shared, state, &event);
    }
}

/// Shows the peers to readers, if they have changed.
fn show_peers(shared: &Shared, state: &mut State) {
    if state.follower.changes() != state.peers_shown {
        state.peers_shown = state.follower.changes();
        let peer = |(owner, record): (OwnerId, &Arc<NodeRecord>)| (owner, peer(shared, record));
        let peers: BTreeMap<OwnerId, Peer> = state.follower.peers().map(peer).collect();
        shared.peers.update(shared.now(), peers);
    }
}

fn note(shared: &Shared, state: &mut State, event: &FollowerEvent) {
    let (node, counters) = (&shared.id, &shared.counters);
    match event {
        FollowerEvent::OwnVisible { sequence } => {
            let publisher = state.publisher.as_mut();
            if let Some(age) = publisher.and_then(|p| p.staleness(shared.now(), *sequence)) {
                counters.publish_to_visible.record(age.as_secs_f64());
            }
            return;
        }
        FollowerEvent::Trouble { node: owner, .. } if owner == node => {
            if let Some(publisher) = &mut state.publisher {
                publisher.republish();
                shared.core.changed.notify_one();
            }
        }
        FollowerEvent::Loaded { .. } => counters.peer_loaded.increment(1),
        FollowerEvent::Gone { .. } | FollowerEvent::Superseded { .. } => {
            counters.peer_gone.increment(1);
        }
        FollowerEvent::Resync { .. } => counters.peer_resynced.increment(1),
        FollowerEvent::Refused { .. } | FollowerEvent::NoOwnerFree { .. } => {
            counters.peer_refused.increment(1);
        }
        FollowerEvent::Trouble { .. } => counters.peer_troubled.increment(1),
        FollowerEvent::Joined { .. } | FollowerEvent::Rotated { .. } => {}
    }
    match event {
        FollowerEvent::Refused { member, reason } => {
            tracing::warn!(%node, member, %reason, "a member is left out");
        }
        event => tracing::debug!(%node, ?event, "followed"),
    }
}

/// How to reach the node of `record`: by those of our transports that it offers, the best one first.
fn peer(shared: &Shared, record: &NodeRecord) -> Peer {
    let endpoints = shared.transports.iter().enumerate();
    let endpoints = endpoints.filter_map(|(transport, ours)| {
        let mut offered = record.info.endpoints().iter();
        let uri = offered.find(|uri| ours.reaches(uri))?.clone();
        Some(Endpoint::new(transport, uri))
    });
    let endpoints: Vec<Endpoint> = endpoints.collect();
    let ours = &shared.config.locality;
    let local = |at: &Endpoint| shared.transports[at.transport].is_local();
    let distance = if endpoints.iter().any(local) {
        Distance::Host
    } else if !ours.is_empty() && record.info.locality() == ours {
        Distance::Near
    } else {
        Distance::Far
    };
    Peer {
        name: record.info.node().to_string(),
        distance,
        endpoints,
    }
}

/// What a node does for the index, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// What it has published.
    pub published: PublisherStats,
    /// Bytes of changes that wait for the store.
    pub queued_bytes: usize,
    /// How long changes are gathered at the moment.
    pub batch_interval: Duration,
    /// Its snapshot of the global index.
    pub snapshot: SnapshotStats,
}

impl Node {
    /// What this node does for the index, in numbers.
    pub fn sync_stats(&self) -> SyncStats {
        let state = self.shared.core.lock();
        let publisher = state.publisher.as_ref();
        SyncStats {
            published: publisher.map(Publisher::stats).unwrap_or_default(),
            queued_bytes: publisher.map_or(0, Publisher::queued_bytes),
            batch_interval: publisher.map_or(Duration::ZERO, Publisher::interval),
            snapshot: self.shared.snapshot.stats(),
        }
    }

    /// Where this node holds each of `keys`, as its peers are told.
    pub fn held(&self, keys: &[BlockKey]) -> Vec<Option<Location>> {
        let state = self.shared.core.lock();
        keys.iter().map(|key| state.residency.get(*key)).collect()
    }

    /// Its peers, and where it believes each of them to hold each of `keys`.
    pub fn believed(&self, keys: &[BlockKey]) -> Vec<(NodeId, Vec<Option<Location>>)> {
        let state = self.shared.core.lock();
        let peer = |(owner, record): (OwnerId, &Arc<NodeRecord>)| {
            let run = OwnerRun {
                owner,
                start: 0,
                len: keys.len(),
            };
            let mut locations = Vec::with_capacity(keys.len());
            self.shared.snapshot.locate(keys, run, &mut locations);
            (record.info.node().clone(), locations)
        };
        state.follower.peers().map(peer).collect()
    }
}
