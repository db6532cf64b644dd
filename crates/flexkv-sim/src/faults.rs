//! The adversary: for a while it crashes nodes, flushes and cuts off the store, loses messages and
//! splits the network. Then it stops and everything is whole again.

use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::StoreFaults;

use crate::cluster::Cluster;
use crate::events::Events;

/// What the store may do to a single call while faults rage: lose it, lose the answer, be slow, so
/// that calls of different nodes overtake each other.
fn stormy() -> StoreFaults {
    StoreFaults {
        lost_request: 0.05,
        lost_reply: 0.05,
        patience: Duration::from_millis(200),
        latency: Duration::ZERO..=Duration::from_millis(30),
    }
}

/// Makes trouble for `duration`, then repairs everything.
pub(crate) async fn adversary(
    cluster: Arc<Cluster>,
    mut rng: fastrand::Rng,
    duration: Duration,
    events: Events,
) {
    let end = tokio::time::Instant::now() + duration;
    cluster.store_faults.set_store(stormy());
    cluster.network.set_loss(0.05);
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(rng.u64(100..4_000))).await;
        let name = Cluster::name(rng.usize(..cluster.nodes()));
        match rng.u8(..7) {
            0 if cluster.node(&name).is_some() => {
                events.note(format!("fault: {name} crashes"));
                cluster.crash(&name);
            }
            0 | 1 if cluster.node(&name).is_none() => {
                events.note(format!("fault: {name} starts again"));
                cluster.start(&name);
            }
            2 => {
                events.note("fault: the store loses everything");
                cluster.store.flush();
            }
            3 => {
                let down = rng.bool();
                events.note(format!(
                    "fault: the store is {}",
                    if down { "cut off" } else { "back" }
                ));
                cluster.store_faults.set_down(down);
            }
            4 => {
                let other = Cluster::name(rng.usize(..cluster.nodes()));
                events.note(format!("fault: {name} and {other} cannot reach each other"));
                cluster.network.partition(&name, &other);
            }
            5 => {
                events.note("fault: the network heals");
                cluster.network.heal();
                cluster.network.set_loss(0.05);
            }
            _ => {}
        }
    }
    repair(&cluster, &events);
}

fn repair(cluster: &Cluster, events: &Events) {
    events.note("faults stop");
    cluster.store_faults.quiet();
    cluster.network.heal();
    for name in (0..cluster.nodes()).map(Cluster::name) {
        if cluster.node(&name).is_none() {
            cluster.start(&name);
        }
    }
}
