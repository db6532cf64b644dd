//! Engines: each takes prompts, loads what exists, checks it, stores the rest, and sometimes dies
//! with everything in its hands.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, ClusterSecret, KeyChain};
use flexkv_node::Node;
use flexkv_ports::{CacheError, Filled, KvCache, Loaded, Ticket};

use crate::checkers::bytes;
use crate::cluster::Cluster;
use crate::events::Events;
use crate::plant::Plant;

/// Conversations over a few shared system prompts: prefixes that fork and grow.
pub(crate) fn prompts(rng: &mut fastrand::Rng, count: usize) -> Vec<Vec<BlockKey>> {
    let secret = ClusterSecret::derive(b"simulation");
    let root = BlockKey::from_u128(0);
    let mut texts: Vec<Vec<u32>> = (0..3).map(|i| vec![i; rng.usize(1..6)]).collect();
    while texts.len() < count {
        let mut text = rng.choice(&texts).cloned().unwrap_or_default();
        let turn = rng.usize(1..6);
        text.extend(std::iter::repeat_with(|| rng.u32(..)).take(turn));
        texts.push(text);
    }
    texts
        .iter()
        .map(|text| KeyChain::keys(&secret, root, 1, text))
        .collect()
}

/// How one request ended.
pub(crate) enum Ended {
    /// As it should.
    Served {
        /// Blocks that came from this node or from peers.
        loaded: usize,
        /// Of them, fetched.
        remote: usize,
    },
    /// The engine died in the middle; what it held was released for it.
    Died,
}

/// What an engine has to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    /// Which engine it is.
    pub(crate) id: usize,
    /// Requests to serve.
    pub(crate) requests: usize,
    /// Between two of them, on average.
    pub(crate) pause: Duration,
}

/// One engine, which serves prompts at whichever node lives.
pub(crate) async fn engine(
    job: Job,
    cluster: Arc<Cluster>,
    prompts: Arc<Vec<Vec<BlockKey>>>,
    mut rng: fastrand::Rng,
    events: Events,
) -> Result<usize, String> {
    let id = job.id;
    let mut remote_total = 0;
    for _ in 0..job.requests {
        tokio::time::sleep(job.pause.mul_f64(2.0 * rng.f64())).await;
        let name = Cluster::name(rng.usize(..cluster.shape().nodes));
        let p = rng.usize(..prompts.len());
        let Some(node) = cluster.node(&name) else {
            events.note(format!("engine {id}: {name} is down"));
            continue;
        };
        if cluster.pauses.is_paused(&name) {
            events.note(format!("engine {id}: {name} is paused"));
            continue;
        }
        let at = At {
            cluster: &cluster,
            name: &name,
            node: &node,
        };
        match at.serve(&prompts[p], &mut rng).await {
            Ok(Ended::Served { loaded, remote }) => {
                remote_total += remote;
                let of = prompts[p].len();
                events.note(format!(
                    "engine {id}: {name} prompt {p}: {loaded} of {of} blocks, {remote} remote"
                ));
            }
            Ok(Ended::Died) => events.note(format!("engine {id}: died at {name}")),
            Err(error) => return Err(format!("engine {id} at {name}, prompt {p}: {error}")),
        }
    }
    Ok(remote_total)
}

/// The node that serves a request.
struct At<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    node: &'a Arc<Node>,
}

impl At<'_> {
    async fn serve(&self, keys: &[BlockKey], rng: &mut fastrand::Rng) -> Result<Ended, String> {
        let mut held: Vec<Ticket> = Vec::new();
        let result = self.request(keys, rng, &mut held).await;
        let forgotten = self.cluster.plant() == Some(Plant::ForgetTickets);
        if forgotten && matches!(result, Ok(Ended::Died)) {
            return result;
        }
        for ticket in held {
            self.node
                .release(ticket)
                .await
                .map_err(|error| error.to_string())?;
        }
        result
    }

    async fn request(
        &self,
        keys: &[BlockKey],
        rng: &mut fastrand::Rng,
        held: &mut Vec<Ticket>,
    ) -> Result<Ended, String> {
        let node = self.node;
        let said = |error: CacheError| error.to_string();
        let hit = node.match_prefix(keys).await.map_err(said)?;
        held.push(hit.ticket);
        let deadline = Duration::from_millis(rng.u64(1..1500));
        let pauses = self.cluster.pauses.times(self.name);
        node.load(hit.ticket, hit.blocks, deadline.into())
            .await
            .map_err(said)?;
        if dies(rng) {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..50))).await;
            return Ok(Ended::Died);
        }
        let loaded = self.loaded(hit.ticket, deadline, pauses).await?;
        bytes::check(keys, &loaded, self.cluster.shape().block_bytes)?;
        // The engine reads slowly; meanwhile others store and evict.
        tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
        bytes::check(keys, &loaded, self.cluster.shape().block_bytes)?;
        let here = loaded.blocks.len();
        if !self.store(keys, here, rng, held).await? {
            return Ok(Ended::Died);
        }
        Ok(Ended::Served {
            loaded: here,
            remote: loaded.remote,
        })
    }

    /// The load's outcome, in time unless the node was paused meanwhile.
    async fn loaded(
        &self,
        ticket: Ticket,
        deadline: Duration,
        pauses: u64,
    ) -> Result<Loaded, String> {
        let said = |error: CacheError| error.to_string();
        let in_time = deadline + Duration::from_millis(5);
        if let Ok(loaded) = tokio::time::timeout(in_time, self.node.wait(ticket)).await {
            return loaded.map_err(said);
        }
        if self.cluster.pauses.times(self.name) == pauses {
            return Err(format!(
                "a load took longer than its deadline of {deadline:?}"
            ));
        }
        self.cluster.pauses.until_running(self.name).await;
        self.node.wait(ticket).await.map_err(said)
    }

    /// Stores what is missing from block `here` on; false if the engine died meanwhile.
    async fn store(
        &self,
        keys: &[BlockKey],
        here: usize,
        rng: &mut fastrand::Rng,
        held: &mut Vec<Ticket>,
    ) -> Result<bool, String> {
        let said = |error: CacheError| error.to_string();
        self.cluster.pauses.until_running(self.name).await;
        let grant = self.node.store(keys, here).await.map_err(said)?;
        held.push(grant.ticket);
        let mut filled = Vec::new();
        for (index, slot) in grant.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let content = bytes::content(keys[here + index], self.cluster.shape().block_bytes);
            slot.write(0, &content);
            tokio::time::sleep(Duration::from_millis(1)).await;
            if dies(rng) {
                return Ok(false);
            }
            filled.push(Filled {
                index,
                checksum: slot.checksum(),
            });
        }
        self.cluster.pauses.until_running(self.name).await;
        self.node
            .commit(grant.ticket, &filled)
            .await
            .map_err(said)?;
        Ok(true)
    }
}

fn dies(rng: &mut fastrand::Rng) -> bool {
    rng.u8(..) < 5
}
