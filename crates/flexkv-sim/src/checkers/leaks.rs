//! Nothing leaks: once all engines are gone, a node holds no tickets and every slot is free or
//! holds a block.

use crate::cluster::Cluster;

/// Checks every live node.
pub(crate) fn check(cluster: &Cluster) -> Result<(), String> {
    for (name, node) in cluster.live() {
        if node.tickets() != 0 {
            return Err(format!("{name} still has {} tickets", node.tickets()));
        }
        let (free, blocks) = (cluster.free_slots(&name), node.blocks());
        if free + blocks != cluster.shape().slots as usize {
            return Err(format!(
                "{name}: {free} free + {blocks} blocks of {}",
                cluster.shape().slots as usize
            ));
        }
    }
    Ok(())
}
