//! No owner lost, none invented: every node believes exactly what the live nodes hold, down to the
//! slot and its generation, and finds the longest prefix that anybody holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use flexkv_block::{BlockKey, Location};
use flexkv_index::NodeId;
use flexkv_node::Node;
use flexkv_ports::KvCache as _;

use crate::cluster::Cluster;

/// For each live node where it holds the blocks of one prompt.
type Held = BTreeMap<NodeId, Vec<Option<Location>>>;

/// Checks every prompt at every live node.
pub(crate) async fn check(cluster: &Cluster, prompts: &[Vec<BlockKey>]) -> Result<(), String> {
    let live = cluster.live();
    for (name, node) in &live {
        let others = live.len() - 1;
        if node.peers() != others {
            return Err(format!("{name} sees {} peers of {others}", node.peers()));
        }
    }
    for (p, keys) in prompts.iter().enumerate() {
        let held: Held = live
            .iter()
            .map(|(_, node)| (node.id().clone(), node.held(keys)))
            .collect();
        for (name, node) in &live {
            beliefs(name, p, node, keys, &held)?;
            prefix(node, keys, &held)
                .await
                .map_err(|error| format!("{name}, prompt {p}: {error}"))?;
        }
    }
    Ok(())
}

/// What the node believes of each peer is what that peer holds.
fn beliefs(
    name: &str,
    p: usize,
    node: &Node,
    keys: &[BlockKey],
    held: &Held,
) -> Result<(), String> {
    for (peer, believed) in node.believed(keys) {
        let Some(really) = held.get(&peer) else {
            return Err(format!("{name} believes in {peer}, which does not live"));
        };
        for (i, (believed, really)) in believed.iter().zip(really).enumerate() {
            let what = match (believed, really) {
                (None, Some(_)) => "an owner is lost",
                (Some(_), None) => "an owner is invented",
                (believed, really) if believed != really => "the place is wrong",
                _ => continue,
            };
            return Err(format!(
                "{name}, prompt {p}, block {i} at {peer}: {what}: believes {believed:?}, is {really:?}"
            ));
        }
    }
    Ok(())
}

/// A match is as long as what all live nodes hold together, and says how much of it is here.
async fn prefix(node: &Arc<Node>, keys: &[BlockKey], held: &Held) -> Result<(), String> {
    let anywhere = |i: &usize| held.values().any(|node| node[*i].is_some());
    let expected = (0..keys.len()).take_while(anywhere).count();
    let hit = node.match_prefix(keys).await.map_err(|e| e.to_string())?;
    node.release(hit.ticket).await.map_err(|e| e.to_string())?;
    if hit.blocks != expected {
        let found = hit.blocks;
        return Err(format!("finds {found} blocks, {expected} are held"));
    }
    let own = held[node.id()][..expected].iter().flatten().count();
    if hit.local != own {
        return Err(format!("{} local blocks, holds {own}", hit.local));
    }
    Ok(())
}
