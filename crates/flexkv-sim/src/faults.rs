//! The adversary: for a while it crashes and pauses nodes, splits the network, and does to the store
//! and to SSDs whatever befalls them. Then it stops and everything is whole again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::{StagedFaults, StoreFaults};

use crate::cluster::Cluster;
use crate::events::Events;
use crate::store::Mood;

/// What the store may do to a single call at any time of a storm: lose it, lose the answer, be late,
/// so that calls of different nodes overtake each other.
fn stormy() -> StoreFaults {
    StoreFaults {
        lost_request: 0.05,
        lost_reply: 0.05,
        patience: Duration::from_millis(200),
        latency: Duration::ZERO..=Duration::from_millis(30),
    }
}

/// A store that takes up to nearly as long as a command may.
pub(crate) fn slow() -> StoreFaults {
    StoreFaults {
        latency: Duration::from_millis(100)..=Duration::from_millis(900),
        ..StoreFaults::default()
    }
}

/// What an SSD may do to a single transfer at any time of a storm.
fn worn() -> StagedFaults {
    StagedFaults {
        busy: 0.02,
        failed: 0.02,
        corrupt: 0.02,
        latency: Duration::ZERO..=Duration::from_millis(5),
        ..StagedFaults::default()
    }
}

/// SSDs of which some transfers take longer than a fetch may.
fn stuck() -> StagedFaults {
    StagedFaults {
        latency: Duration::from_millis(10)..=Duration::from_millis(500),
        ..worn()
    }
}

/// One thing that the adversary does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Crash(String),
    Restart(String),
    /// Stopped as by SIGSTOP, with all it was at.
    Pause(String),
    Resume(String),
    StoreLosesAll,
    StoreLosesLog,
    StoreStops,
    StoreStarts,
    StoreRestartsEmpty,
    StoreTurns(Mood),
    StoreIsSlow,
    StoreIsQuick,
    /// Between a node and the store, or no longer.
    StoreCut(String),
    Partition(String, String),
    NetworkHeals,
    SsdsAreStuck,
    SsdsAreWorn,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(node) => write!(f, "{node} crashes"),
            Self::Restart(node) => write!(f, "{node} starts again, empty"),
            Self::Pause(node) => write!(f, "{node} is paused"),
            Self::Resume(node) => write!(f, "{node} goes on"),
            Self::StoreLosesAll => write!(f, "the store loses everything"),
            Self::StoreLosesLog => write!(f, "the store loses a log, or its end"),
            Self::StoreStops => write!(f, "the store stops"),
            Self::StoreStarts => write!(f, "the store starts"),
            Self::StoreRestartsEmpty => write!(f, "the store stops, loses everything, starts"),
            Self::StoreTurns(Mood::Well) => write!(f, "the store takes calls as usual"),
            Self::StoreTurns(Mood::Denying) => write!(f, "the store refuses the password"),
            Self::StoreTurns(Mood::Full) => write!(f, "the store is out of memory"),
            Self::StoreIsSlow => write!(f, "the store is slow"),
            Self::StoreIsQuick => write!(f, "the store is quick"),
            Self::StoreCut(node) => write!(f, "way between {node} and the store: cut or mended"),
            Self::Partition(a, b) => write!(f, "{a} and {b} cannot reach each other"),
            Self::NetworkHeals => write!(f, "the network heals"),
            Self::SsdsAreStuck => write!(f, "the SSDs are stuck"),
            Self::SsdsAreWorn => write!(f, "the SSDs are quicker again"),
        }
    }
}

impl Fault {
    /// Draws one that makes sense now.
    fn draw(rng: &mut fastrand::Rng, cluster: &Cluster) -> Self {
        let mut node = || Cluster::name(rng.usize(..cluster.shape().nodes));
        let (name, other) = (node(), node());
        match rng.u8(..16) {
            0 | 1 if cluster.node(&name).is_none() => Self::Restart(name),
            0 => Self::Crash(name),
            1 | 2 if cluster.pauses.is_paused(&name) => Self::Resume(name),
            1 => Self::Pause(name),
            2 => Self::StoreLosesAll,
            3 => Self::StoreLosesLog,
            4 => Self::StoreStops,
            5 => Self::StoreStarts,
            6 => Self::StoreRestartsEmpty,
            7 => Self::StoreTurns(Mood::Denying),
            8 => Self::StoreTurns(Mood::Full),
            9 => Self::StoreTurns(Mood::Well),
            10 => Self::StoreIsSlow,
            11 => Self::StoreIsQuick,
            12 => Self::StoreCut(name),
            13 => Self::SsdsAreStuck,
            14 => Self::SsdsAreWorn,
            _ if rng.bool() && name != other => Self::Partition(name, other),
            _ => Self::NetworkHeals,
        }
    }

    fn strike(&self, cluster: &Cluster, rng: &mut fastrand::Rng) {
        let store = &cluster.store;
        match self {
            Self::Crash(node) => cluster.crash(node),
            Self::Restart(node) => cluster.start(node),
            Self::Pause(node) => cluster.pauses.pause(node),
            Self::Resume(node) => cluster.pauses.resume(node),
            Self::StoreLosesAll => store.flush(),
            Self::StoreLosesLog => drop(store.damage(rng)),
            Self::StoreStops => store.set_stopped(true),
            Self::StoreStarts => store.set_stopped(false),
            Self::StoreRestartsEmpty => {
                store.set_stopped(true);
                store.flush();
                store.set_stopped(false);
            }
            Self::StoreTurns(mood) => store.set_mood(*mood),
            Self::StoreIsSlow => store.set_weather(slow()),
            Self::StoreIsQuick => store.set_weather(stormy()),
            Self::StoreCut(node) => drop(store.toggle_cut(node)),
            Self::Partition(a, b) => cluster.network.partition(a, b),
            Self::NetworkHeals => {
                cluster.network.heal();
                cluster.network.set_loss(0.05);
            }
            Self::SsdsAreStuck => cluster.ssd_faults.set_staged(stuck()),
            Self::SsdsAreWorn => cluster.ssd_faults.set_staged(worn()),
        }
    }
}

/// Makes trouble for `duration`, then repairs everything; a node that is dead may stay so.
pub(crate) async fn adversary(
    cluster: Arc<Cluster>,
    mut rng: fastrand::Rng,
    duration: Duration,
    events: Events,
) {
    let end = tokio::time::Instant::now() + duration;
    cluster.store.set_weather(stormy());
    cluster.network.set_loss(0.05);
    cluster.ssd_faults.set_staged(worn());
    let longest = rng.u64(1_000..12_000);
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(rng.u64(100..longest))).await;
        let fault = Fault::draw(&mut rng, &cluster);
        events.note(format!("fault: {fault}"));
        fault.strike(&cluster, &mut rng);
    }
    repair(&cluster, &mut rng, &events);
}

fn repair(cluster: &Cluster, rng: &mut fastrand::Rng, events: &Events) {
    events.note("faults stop");
    cluster.store.repair();
    cluster.network.heal();
    cluster.ssd_faults.quiet();
    cluster.pauses.resume_all();
    for name in cluster.names() {
        if cluster.node(&name).is_none() && (rng.bool() || cluster.live().len() < 2) {
            events.note(format!("{name} starts again, empty"));
            cluster.start(&name);
        }
    }
}
