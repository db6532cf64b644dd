//! Nothing leaks: once all engines are gone, a node holds no tickets and every slot is free or
//! holds a block.

use flexkv_block::Tier;

use crate::cluster::Cluster;

/// Checks every live node.
pub(crate) fn check(cluster: &Cluster) -> Result<(), String> {
    for (name, node) in cluster.live() {
        if node.tickets() != 0 {
            return Err(format!("{name} still has {} tickets", node.tickets()));
        }
        let (free, blocks) = (cluster.free_slots(&name), node.blocks_in(Tier::Host));
        if free + blocks != cluster.shape().slots as usize {
            return Err(format!(
                "{name}: {free} free + {blocks} blocks of {}",
                cluster.shape().slots as usize
            ));
        }
        let (slots, blocks) = (cluster.ssd_blocks(&name), node.blocks_in(Tier::Ssd));
        if slots != blocks {
            return Err(format!("{name}: {slots} blocks on SSD, {blocks} known"));
        }
    }
    Ok(())
}
