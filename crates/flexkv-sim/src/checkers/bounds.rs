//! Everything is bounded: what waits at a node, what its snapshot takes, and what it leaves in the
//! store, where nothing of the dead stays.

use std::collections::BTreeMap;

use flexkv_index::NodeId;

use crate::cluster::Cluster;

/// What an entry of these small nodes has at most.
const ENTRY: usize = 1024;
/// What one block may take in a log at most: an entry of its own, added and removed.
const BLOCK: usize = 200;

/// Checks queues, at any time.
pub(crate) fn queues(cluster: &Cluster) -> Result<(), String> {
    // The entry that is over the limit may still be on its way.
    let limit = cluster.shape().queue_bytes + ENTRY;
    for (name, node) in cluster.live() {
        let queued = node.sync_stats().queued_bytes;
        if queued > limit {
            return Err(format!("{name}: {queued} bytes wait, {limit} are allowed"));
        }
    }
    Ok(())
}

/// Checks snapshots and the store of a cluster that has converged and was left alone for longer than
/// leases and logs live.
pub(crate) async fn leftovers(cluster: &Cluster) -> Result<(), String> {
    snapshots(cluster)?;
    let live: BTreeMap<NodeId, usize> = cluster
        .live()
        .into_iter()
        .map(|(_, node)| (node.id().clone(), node.blocks()))
        .collect();
    let leases = cluster.store.leases().await;
    let mut expected: Vec<_> = live.keys().map(NodeId::to_string).collect();
    expected.sort_unstable();
    if leases != expected {
        return Err(format!("leases of {leases:?}, live are {expected:?}"));
    }
    logs(cluster, &live).await
}

/// A snapshot holds one replica for each block that somebody holds; nothing of owners that are gone.
pub(crate) fn snapshots(cluster: &Cluster) -> Result<(), String> {
    let blocks: usize = cluster.live().iter().map(|(_, node)| node.blocks()).sum();
    for (name, node) in cluster.live() {
        let replicas = node.sync_stats().snapshot.replicas;
        if replicas != blocks {
            return Err(format!(
                "{name}: snapshot of {replicas} replicas, {blocks} exist"
            ));
        }
    }
    Ok(())
}

/// A live node has its log and at most the one before; nobody else has any.
async fn logs(cluster: &Cluster, live: &BTreeMap<NodeId, usize>) -> Result<(), String> {
    let mut kept: BTreeMap<NodeId, usize> = BTreeMap::new();
    for log in cluster.store.logs() {
        let Some((entries, bytes)) = cluster.store.log_size(&log).await else {
            continue;
        };
        let (node, _) = NodeId::parse_log(&log).map_err(|error| error.to_string())?;
        let Some(blocks) = live.get(&node) else {
            return Err(format!("log {log} is left over, of {entries} entries"));
        };
        let limit = 4 * (cluster.shape().rotate_bytes + ENTRY + BLOCK * blocks);
        if bytes > limit {
            return Err(format!("log {log} has {bytes} bytes, {limit} are allowed"));
        }
        *kept.entry(node).or_default() += 1;
    }
    match kept.iter().find(|(_, logs)| **logs > 2) {
        Some((node, logs)) => Err(format!("{node} has {logs} logs")),
        None => Ok(()),
    }
}
