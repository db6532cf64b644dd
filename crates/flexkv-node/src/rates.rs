//! How fast an endpoint of a peer delivers, and how much of what was asked for has yet to come.
//!
//! A rate is bytes over the time that the endpoint was busy with them; each fetch makes the earlier
//! ones count less. Knows no peers and decides nothing. Time is tokio's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What earlier fetches count for after each further one.
const MEMORY: f64 = 0.7;
/// A rate that was not measured for so long is a guess again.
const FRESH: Duration = Duration::from_secs(30);
/// The shortest time that a fetch counts as, in seconds.
const TIME_MIN: f64 = 1e-6;

/// The way to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Link(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes that came, and the seconds they took, both fading.
    bytes: f64,
    seconds: f64,
    measured: Option<Instant>,
    /// When a fetch last brought anything.
    delivered: Option<Instant>,
    /// When the last fetch ended.
    idle_since: Option<Instant>,
    in_flight: u64,
}

/// What a link does at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    /// Bytes a second, if that was measured lately.
    pub(crate) rate: Option<f64>,
    /// Bytes that were asked for and have not come.
    pub(crate) in_flight: u64,
}

impl Link {
    /// How fast it is and how busy.
    pub(crate) fn speed(&self) -> Speed {
        let state = self.lock();
        let fresh = state.measured.is_some_and(|at| at.elapsed() < FRESH);
        Speed {
            rate: fresh.then(|| state.rate()),
            in_flight: state.in_flight,
        }
    }

    /// Whether anything came from it since then.
    pub(crate) fn delivered_since(&self, then: Instant) -> bool {
        self.lock().delivered.is_some_and(|at| at >= then)
    }

    /// Notes that `bytes` are asked for now.
    pub(crate) fn begin(self: &Arc<Self>, bytes: u64) -> Delivery {
        self.lock().in_flight += bytes;
        Delivery {
            link: self.clone(),
            bytes,
            begun: Instant::now(),
            ended: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rate(&self) -> f64 {
        self.bytes / self.seconds
    }

    /// Seconds that the link was busy with a fetch alone, if it ends now.
    fn busy(&self, begun: Instant) -> f64 {
        let from = self.idle_since.map_or(begun, |idle| idle.max(begun));
        from.elapsed().as_secs_f64().max(TIME_MIN)
    }

    fn measure(&mut self, bytes: f64, seconds: f64) {
        self.bytes = self.bytes * MEMORY + bytes;
        self.seconds = self.seconds * MEMORY + seconds;
        self.measured = Some(Instant::now());
    }
}

/// Bytes under way. One that is dropped was given up.
#[derive(Debug)]
pub(crate) struct Delivery {
    link: Arc<Link>,
    bytes: u64,
    begun: Instant,
    ended: bool,
}

impl Delivery {
    /// The fetch ended with this many bytes. None at all is a failure, which tells nothing of speed.
    pub(crate) fn arrived(mut self, bytes: u64) {
        let mut state = self.link.lock();
        if bytes > 0 {
            let seconds = state.busy(self.begun);
            state.measure(bytes as f64, seconds);
            state.delivered = Some(Instant::now());
        }
        state.idle_since = Some(Instant::now());
        drop(state);
        self.ended = true;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        state.in_flight -= self.bytes;
        if self.ended {
            return;
        }
        // Not all came in this time, so the link is at most so fast.
        let seconds = state.busy(self.begun);
        let most = self.bytes as f64 / seconds;
        let news = state.measured.is_none() || most < state.rate();
        if news && seconds > TIME_MIN {
            state.measure(self.bytes as f64, seconds);
        }
        state.idle_since = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests;
