//! Index converges: after faults have stopped, every node finds exactly what live nodes hold.

use flexkv_block::BlockKey;
use flexkv_ports::KvCache as _;

use crate::cluster::Cluster;

/// Checks every prompt at every live node.
pub(crate) async fn check(cluster: &Cluster, prompts: &[Vec<BlockKey>]) -> Result<(), String> {
    let live = cluster.live();
    for (name, node) in &live {
        if node.peers() + 1 != live.len() {
            return Err(format!(
                "{name} sees {} peers of {}",
                node.peers(),
                live.len() - 1
            ));
        }
    }
    for (p, keys) in prompts.iter().enumerate() {
        let held: Vec<Vec<bool>> = live.iter().map(|(_, node)| node.holds(keys)).collect();
        let anywhere = |i: &usize| held.iter().any(|node| node[*i]);
        let expected = (0..keys.len()).take_while(anywhere).count();
        for (n, (name, node)) in live.iter().enumerate() {
            let hit = node.match_prefix(keys).await.map_err(|e| e.to_string())?;
            node.release(hit.ticket).await.map_err(|e| e.to_string())?;
            if hit.blocks != expected {
                let found = hit.blocks;
                return Err(format!(
                    "{name}, prompt {p}: finds {found} blocks, {expected} are held"
                ));
            }
            let own = held[n][..expected].iter().filter(|here| **here).count();
            if hit.local != own {
                return Err(format!(
                    "{name}, prompt {p}: {} local blocks, holds {own}",
                    hit.local
                ));
            }
        }
    }
    Ok(())
}
