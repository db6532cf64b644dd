//! Engines: each takes prompts, loads what exists, checks it, stores the rest, and sometimes dies
//! with everything in its hands.

use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, ClusterSecret, KeyChain};
use flexkv_node::Node;
use flexkv_ports::{CacheError, Filled, KvCache, Ticket};

use crate::checkers::bytes;
use crate::cluster::Cluster;
use crate::events::Events;

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

/// One engine, which serves `requests` prompts at whichever node lives.
pub(crate) async fn engine(
    id: usize,
    cluster: Arc<Cluster>,
    prompts: Arc<Vec<Vec<BlockKey>>>,
    mut rng: fastrand::Rng,
    requests: usize,
    events: Events,
) -> Result<usize, String> {
    let mut remote_total = 0;
    for _ in 0..requests {
        tokio::time::sleep(Duration::from_millis(rng.u64(1..800))).await;
        let name = Cluster::name(rng.usize(..cluster.nodes()));
        let p = rng.usize(..prompts.len());
        let Some(node) = cluster.node(&name) else {
            events.note(format!("engine {id}: {name} is down"));
            continue;
        };
        match serve(&node, &prompts[p], cluster.block_bytes(), &mut rng).await {
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

async fn serve(
    node: &Arc<Node>,
    keys: &[BlockKey],
    block_bytes: usize,
    rng: &mut fastrand::Rng,
) -> Result<Ended, String> {
    let mut held: Vec<Ticket> = Vec::new();
    let result = request(node, keys, block_bytes, rng, &mut held).await;
    for ticket in held {
        node.release(ticket)
            .await
            .map_err(|error| error.to_string())?;
    }
    result
}

async fn request(
    node: &Arc<Node>,
    keys: &[BlockKey],
    block_bytes: usize,
    rng: &mut fastrand::Rng,
    held: &mut Vec<Ticket>,
) -> Result<Ended, String> {
    let said = |error: CacheError| error.to_string();
    let hit = node.match_prefix(keys).await.map_err(said)?;
    held.push(hit.ticket);
    let deadline = Duration::from_millis(rng.u64(1..1500));
    node.load(hit.ticket, hit.blocks, deadline)
        .await
        .map_err(said)?;
    if dies(rng) {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..50))).await;
        return Ok(Ended::Died);
    }
    let loaded = tokio::time::timeout(deadline + Duration::from_millis(5), node.wait(hit.ticket))
        .await
        .map_err(|_| format!("a load took longer than its deadline of {deadline:?}"))?
        .map_err(said)?;
    bytes::check(keys, &loaded, block_bytes)?;
    // The engine reads slowly; meanwhile others store and evict.
    tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
    bytes::check(keys, &loaded, block_bytes)?;
    let here = loaded.blocks.len();
    let grant = node.store(keys, here).await.map_err(said)?;
    held.push(grant.ticket);
    let mut filled = Vec::new();
    for (index, slot) in grant.slots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        slot.write(0, &bytes::content(keys[here + index], block_bytes));
        tokio::time::sleep(Duration::from_millis(1)).await;
        if dies(rng) {
            return Ok(Ended::Died);
        }
        filled.push(Filled {
            index,
            checksum: slot.checksum(),
        });
    }
    node.commit(grant.ticket, &filled).await.map_err(said)?;
    Ok(Ended::Served {
        loaded: here,
        remote: loaded.remote,
    })
}

fn dies(rng: &mut fastrand::Rng) -> bool {
    rng.u8(..) < 5
}
