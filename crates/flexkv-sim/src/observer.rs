//! Writes into the events what the nodes themselves go through: whom they see, when they begin a log
//! anew and why. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flexkv_node::Node;

use crate::checkers::bounds;
use crate::cluster::Cluster;
use crate::events::Events;

/// How often to look.
const EVERY: Duration = Duration::from_millis(500);

/// Notes what changes until the task is ended, or a queue is over its bound.
pub(crate) async fn observe(cluster: Arc<Cluster>, events: Events) -> String {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    loop {
        if let Err(wrong) = bounds::queues(&cluster) {
            return wrong;
        }
        for (name, node) in cluster.live() {
            let state = describe(&node);
            if seen.get(&name) != Some(&state) {
                events.note(format!("{name}: {state}"));
                seen.insert(name, state);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn describe(node: &Node) -> String {
    let mut peers: Vec<_> = node
        .believed(&[])
        .into_iter()
        .map(|(peer, _)| format!("{}.{:04x}", peer.name, peer.incarnation >> 48))
        .collect();
    peers.sort_unstable();
    let stats = node.sync_stats().published;
    let mut text = format!(
        "{:04x} sees {}; epoch {}",
        node.id().incarnation >> 48,
        if peers.is_empty() {
            "nobody".to_owned()
        } else {
            peers.join(" ")
        },
        stats.epochs
    );
    let counts = [
        (stats.rotations, "rotations"),
        (stats.losses, "losses found"),
        (stats.overflows, "queues run over"),
    ];
    for (count, what) in counts {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}
