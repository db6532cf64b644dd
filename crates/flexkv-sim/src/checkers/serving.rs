//! Serving goes on: whatever befalls the store, as long as the nodes live and nothing changes, every
//! node goes on knowing exactly what is held, at every moment.

use std::fmt;
use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_ports::StoreFaults;
use tokio::time::Instant;

use super::owners;
use crate::cluster::Cluster;
use crate::events::Events;
use crate::faults::slow;
use crate::store::Mood;

/// How often to look.
const EVERY: Duration = Duration::from_secs(1);
/// How long to look on after the store is well again: leases lapse and logs expire within this.
const AFTERWARDS: Duration = Duration::from_secs(12);

/// What befalls the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Flushed,
    Stopped,
    RestartedEmpty,
    Turned(Mood),
    Slow,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flushed => write!(f, "is flushed"),
            Self::Stopped => write!(f, "is stopped"),
            Self::RestartedEmpty => write!(f, "is stopped and loses everything"),
            Self::Turned(mood) => write!(f, "is {mood:?}"),
            Self::Slow => write!(f, "is slow"),
        }
    }
}

impl Trouble {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..6) {
            0 => Self::Flushed,
            1 => Self::Stopped,
            2 => Self::RestartedEmpty,
            3 => Self::Turned(Mood::Denying),
            4 => Self::Turned(Mood::Full),
            _ => Self::Slow,
        }
    }

    fn begin(self, cluster: &Cluster) {
        match self {
            Self::Flushed => cluster.store.flush(),
            Self::Stopped => cluster.store.set_stopped(true),
            Self::RestartedEmpty => {
                cluster.store.set_stopped(true);
                cluster.store.flush();
            }
            Self::Turned(mood) => cluster.store.set_mood(mood),
            Self::Slow => cluster.store.set_weather(slow()),
        }
    }

    fn end(self, cluster: &Cluster) {
        cluster.store.set_stopped(false);
        cluster.store.set_mood(Mood::Well);
        cluster.store.set_weather(StoreFaults::default());
    }
}

/// Lets one trouble befall the store of a converged cluster, and looks at what the nodes know.
pub(crate) async fn check(
    cluster: &Cluster,
    prompts: &[Vec<BlockKey>],
    rng: &mut fastrand::Rng,
    events: &Events,
) -> Result<(), String> {
    let trouble = Trouble::draw(rng);
    let lasting = Duration::from_secs(rng.u64(1..30));
    events.note(format!("the store {trouble}, for {lasting:?}"));
    trouble.begin(cluster);
    look(cluster, prompts, lasting)
        .await
        .map_err(|wrong| format!("while the store {trouble}: {wrong}"))?;
    trouble.end(cluster);
    events.note("the store is well");
    look(cluster, prompts, AFTERWARDS)
        .await
        .map_err(|wrong| format!("after the store {trouble}: {wrong}"))
}

async fn look(
    cluster: &Cluster,
    prompts: &[Vec<BlockKey>],
    lasting: Duration,
) -> Result<(), String> {
    let end = Instant::now() + lasting;
    while Instant::now() < end {
        tokio::time::sleep(EVERY).await;
        owners::check(cluster, prompts).await?;
    }
    Ok(())
}
