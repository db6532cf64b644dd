//! The cache node: it answers what exists, fetches what is elsewhere, keeps what engines compute,
//! evicts, and tells the cluster.
//!
//! It drives the pure state machines of `flexkv-index` and the ports of `flexkv-ports`. Serving
//! peers is the transports' affair: their servers read the same tier.
//!
//! The node knows no Redis, no sockets, no memfd and no wall clock; its only clock is tokio's, so
//! that a simulation can replace time.

mod ahead;
mod cache;
mod config;
mod core;
mod counters;
mod fetch;
mod landing;
mod load;
mod peers;
mod plan;
mod rates;
mod reads;
mod reset;
mod sources;
mod staging;
mod suspects;
mod sync;
mod tickets;
mod write_behind;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::{BlockKey, Tier};
use flexkv_index::{
    Follower, FollowerConfig, NodeId, NodeInfo, OwnerId, Publisher, PublisherConfig, RecordError,
    Snapshot,
};
use flexkv_ports::{BlockTier, MetadataStore, StagedTier, Transport};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::ahead::Unused;
pub use crate::config::{Admission, NodeConfig};
use crate::core::{Core, State};
use crate::counters::Counters;
use crate::fetch::Fetches;
use crate::peers::Peers;
use crate::reads::Reads;
use crate::reset::Resets;
pub use crate::sync::{SyncStats, carry_out};
use crate::tickets::Tickets;
use crate::write_behind::Backlog;

/// What a node is built from.
pub struct NodePorts {
    /// Where blocks lie.
    pub tier: Arc<dyn BlockTier>,
    /// Where more of them lie, if anywhere: what is in there already is published at the start.
    pub staged: Option<Arc<dyn StagedTier>>,
    /// The cluster's metadata store; `None` for a node that is alone.
    pub store: Option<Arc<dyn MetadataStore>>,
    /// Ways to fetch from peers, best first.
    pub transports: Vec<Arc<dyn Transport>>,
    /// Source of the node's incarnation.
    pub rng: fastrand::Rng,
}

/// A running node. Dropping it ends its tasks as a crash would; see [`Node::stop`].
pub struct Node {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What the node's tasks share.
struct Shared {
    config: NodeConfig,
    id: NodeId,
    started: Instant,
    own: OwnerId,
    runtime: Handle,
    tier: Arc<dyn BlockTier>,
    staged: Option<Arc<dyn StagedTier>>,
    store: Option<Arc<dyn MetadataStore>>,
    transports: Vec<Arc<dyn Transport>>,
    snapshot: Snapshot,
    core: Core,
    peers: Peers,
    tickets: Tickets,
    fetches: Arc<Fetches>,
    reads: Arc<Reads>,
    counters: Counters,
    resets: Resets,
}

impl Shared {
    /// Time since the node started.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Node {
    /// Starts a node: its tasks run on the current tokio runtime. Its metrics go to `recorder`.
    ///
    /// # Errors
    /// If an endpoint or the locality in `config` cannot be published.
    pub fn start(
        config: NodeConfig,
        ports: NodePorts,
        recorder: &dyn metrics::Recorder,
    ) -> Result<Arc<Self>, RecordError> {
        let mut rng = ports.rng;
        let id = NodeId {
            name: config.name.clone(),
            incarnation: rng.u64(..),
        };
        let info = NodeInfo::new(
            id.clone(),
            config.namespace,
            u32::try_from(ports.tier.shape().block_bytes).unwrap_or(u32::MAX),
            config.locality.clone(),
            config.endpoints.clone(),
        )?;
        let (mut writer, snapshot) = flexkv_index::snapshot();
        let own = writer
            .add_owner()
            .unwrap_or_else(|| unreachable!("a new snapshot has room"));
        writer.set_live(own, true);
        let publisher = ports.store.is_some().then(|| {
            let defaults = PublisherConfig::default();
            Publisher::new(
                PublisherConfig {
                    batch_interval: config.batch_interval,
                    batch_interval_max: config.batch_interval_max,
                    lease_ttl: config.lease,
                    max_entry_blocks: config.log_entry_blocks,
                    max_queue_bytes: config.log_queue_bytes,
                    rotate_min_bytes: config.log_rotate_bytes,
                    ..defaults
                },
                info.clone(),
            )
        });
        let following = FollowerConfig {
            gone_after: config.gone_after,
            ..FollowerConfig::default()
        };
        let counters = Counters::register(recorder, config.name.as_str());
        let state = State {
            unused: Unused::new(counters.ahead.clone()),
            residency: core::residency(config.policies),
            publisher,
            follower: Follower::new(following, info),
            writer,
            peers_shown: 0,
            doomed: Vec::new(),
            resets: 0,
            backlog: Backlog::new(
                ports.staged.is_some().then_some(config.admission),
                ports.tier.shape().slots as usize,
            ),
        };
        let policies = config.policies;
        let shared = Arc::new(Shared {
            counters,
            peers: Peers::new(config.peer_backoff, config.peer_backoff_max),
            config,
            id,
            started: Instant::now(),
            own,
            runtime: Handle::current(),
            tier: ports.tier,
            staged: ports.staged.clone(),
            store: ports.store,
            transports: ports.transports,
            snapshot,
            core: Core::new(state, own, ports.staged.clone(), policies),
            tickets: Tickets::default(),
            fetches: Arc::default(),
            reads: Arc::default(),
            resets: Resets::default(),
        });
        if let Some(staged) = &ports.staged {
            let blocks = staged.recovered();
            shared
                .counters
                .recovered_blocks
                .increment(blocks.len() as u64);
            shared.core.recover(blocks);
        }
        let mut tasks = sync::start(&shared);
        if let Some(staged) = ports.staged {
            let writing = tokio::spawn(write_behind::run(shared.clone(), staged));
            tasks.push(writing.abort_handle());
        }
        Ok(Arc::new(Self {
            shared,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Which node this is, in which of its lives.
    pub fn id(&self) -> &NodeId {
        &self.shared.id
    }

    /// Peers whose blocks this node knows of by now.
    pub fn peers(&self) -> usize {
        self.shared.peers.table().peers.len()
    }

    /// Blocks this node holds.
    pub fn blocks(&self) -> usize {
        self.shared.core.lock().residency.len()
    }

    /// Blocks this node holds in `tier`.
    pub fn blocks_in(&self, tier: Tier) -> usize {
        self.shared.core.lock().residency.len_in(tier)
    }

    /// Which of `keys` this node holds.
    pub fn holds(&self, keys: &[BlockKey]) -> Vec<bool> {
        self.held(keys).iter().map(Option::is_some).collect()
    }

    /// Tickets that engines hold.
    pub fn tickets(&self) -> usize {
        self.shared.tickets.len()
    }

    /// Brings the gauges up to what is true now; for whoever is about to read them.
    pub fn observe(&self) {
        let Shared {
            counters,
            tickets,
            tier,
            ..
        } = &*self.shared;
        let usage = tier.usage();
        counters.tickets.set(tickets.len() as f64);
        counters.resident_blocks.set(self.blocks() as f64);
        counters.peers.set(self.peers() as f64);
        counters.free_slots.set(usage.free as f64);
        counters.filling_slots.set(usage.filling as f64);
        counters.block_slots.set(usage.blocks as f64);
        counters.pinned_slots.set(usage.pinned as f64);
        if let Some(staged) = &self.shared.staged {
            counters.staged_slots.set(f64::from(staged.shape().slots));
            counters.staged_free_slots.set(staged.free_slots() as f64);
        }
        let known = self.shared.snapshot.stats();
        counters.known_blocks.set(known.blocks as f64);
        counters.known_replicas.set(known.replicas as f64);
    }

    /// Leaves the cluster: peers forget this node at once instead of after its lease. Loads end,
    /// all tickets are released.
    pub async fn stop(&self) {
        self.end_tasks();
        drop(self.shared.tickets.clear());
        sync::leave(&self.shared).await;
    }

    fn add_task(&self, task: AbortHandle) {
        self.tasks().push(task);
    }

    fn end_tasks(&self) {
        self.tasks().drain(..).for_each(|task| task.abort());
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_tasks();
        drop(self.shared.tickets.clear());
    }
}

#[cfg(test)]
mod tests;
