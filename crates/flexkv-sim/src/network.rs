//! The simulated network between nodes: delays, losses, reordering, partitions, nodes that are paused.
//!
//! Each node has its own [`SimTransport`], which knows on whose behalf it fetches. Blocks move by
//! the in-memory transport; what is simulated is when, and whether, an answer comes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_ports::{
    BoxFuture, FetchOutcome, Fetched, HeapHub, HeapTransport, Suspect, Transport, Want,
};

use crate::pauses::Pauses;
use crate::plant::Plant;

/// What the network does to messages at the moment.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// Share of fetches that get no answer.
    loss: f64,
    /// Pairs of nodes that cannot reach each other, smaller name first.
    partitions: BTreeSet<(String, String)>,
}

/// The network that all transports of a simulation share.
#[derive(Clone)]
pub(crate) struct Network {
    hub: HeapHub,
    pauses: Pauses,
    plant: Option<Plant>,
    state: Arc<Mutex<(Weather, fastrand::Rng)>>,
}

impl Network {
    pub(crate) fn new(
        hub: HeapHub,
        pauses: Pauses,
        plant: Option<Plant>,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            hub,
            pauses,
            plant,
            state: Arc::new(Mutex::new((Weather::default(), rng))),
        }
    }

    /// The transport of node `name`.
    pub(crate) fn transport(&self, name: &str) -> SimTransport {
        let inner = HeapTransport::new(self.hub.clone());
        SimTransport {
            network: self.clone(),
            name: name.to_owned(),
            inner,
        }
    }

    pub(crate) fn set_loss(&self, loss: f64) {
        self.lock().0.loss = loss;
    }

    pub(crate) fn partition(&self, a: &str, b: &str) {
        self.lock().0.partitions.insert(pair(a, b));
    }

    /// All pairs reach each other again and nothing is lost.
    pub(crate) fn heal(&self) {
        self.lock().0 = Weather::default();
    }

    fn lock(&self) -> MutexGuard<'_, (Weather, fastrand::Rng)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long request and answer take between two nodes; `None` if one of them is lost.
    fn delays(&self, from: &str, to: &str) -> Option<(Duration, Duration)> {
        let (weather, rng) = &mut *self.lock();
        let lost = rng.f64() < weather.loss
            || weather.partitions.contains(&pair(from, to))
            || self.pauses.is_paused(to);
        let extra = self.plant.map_or(0, Plant::extra_delay);
        let mut delay = || {
            let usual = rng.u64(50..3_000);
            let slow = if rng.u8(..) < 8 {
                rng.u64(0..400_000)
            } else {
                0
            };
            Duration::from_micros(usual + slow + extra)
        };
        let delays = (delay(), delay());
        (!lost).then_some(delays)
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    let (first, second) = if a < b { (a, b) } else { (b, a) };
    (first.to_owned(), second.to_owned())
}

/// A node's end of the network.
pub(crate) struct SimTransport {
    network: Network,
    name: String,
    inner: HeapTransport,
}

impl Transport for SimTransport {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn stages(&self) -> bool {
        self.inner.stages()
    }

    fn fetch<'a>(
        &'a self,
        endpoint: &'a str,
        wants: Vec<Want>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<Fetched>> {
        Box::pin(async move {
            let to = endpoint
                .split_once("://")
                .map_or(endpoint, |(_, name)| name);
            let Some((there, back)) = self.network.delays(&self.name, to) else {
                tokio::time::sleep(deadline).await;
                return unreachable(wants);
            };
            if there + back > deadline {
                tokio::time::sleep(deadline).await;
                return unreachable(wants);
            }
            tokio::time::sleep(there).await;
            let fetched = self.inner.fetch(endpoint, wants, deadline).await;
            tokio::time::sleep(back).await;
            self.network.pauses.until_running(&self.name).await;
            fetched
        })
    }

    fn report(&self, endpoint: &str, suspect: Suspect) {
        self.inner.report(endpoint, suspect);
    }
}

fn unreachable(wants: Vec<Want>) -> Vec<Fetched> {
    let lost = |want: Want| Fetched {
        outcome: FetchOutcome::Unreachable,
        into: want.into,
    };
    wants.into_iter().map(lost).collect()
}

#[cfg(test)]
mod tests;
