//! The transport's decorator: delays, slows down, hangs, refuses, and spoils the outcome of single blocks.
//!
//! It cannot damage bytes before the inner transport verifies them, so it reports what that
//! verification would have reported.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::store::pause;
use super::{Board, Faults, Wire};
use crate::{FetchOutcome, Fetched, Suspect, Transport, Want};

/// A [`Transport`] that fails as its [`Faults`] say.
#[derive(Clone, Debug)]
pub struct FaultyTransport<T> {
    inner: T,
    faults: Faults,
}

/// What was drawn for one fetch.
struct Draw {
    hang: bool,
    refused: bool,
    latency: Duration,
    wire: Option<Arc<Wire>>,
    /// Per block: what it becomes instead of what it was.
    spoiled: Vec<Option<FetchOutcome>>,
}

impl<T> FaultyTransport<T> {
    /// `inner`, failing as `faults` say.
    pub fn new(inner: T, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn draw(&self, endpoint: &str, blocks: usize) -> Draw {
        let mut board = self.faults.board();
        let faults = board.transport.clone();
        let cut = board.cut.contains(endpoint);
        Draw {
            hang: board.happens(faults.hang),
            refused: board.happens(faults.refused) || cut,
            latency: board.delay(&faults.latency),
            wire: board.slow.get(endpoint).cloned(),
            spoiled: (0..blocks).map(|_| board.spoil()).collect(),
        }
    }

    /// The wants' buffers, unfilled.
    fn unreachable(&self, wants: Vec<Want>) -> Vec<Fetched> {
        let give_back = |want: Want| Fetched {
            outcome: FetchOutcome::Unreachable,
            into: want.into,
        };
        self.faults.count();
        wants.into_iter().map(give_back).collect()
    }

    fn spoil(&self, fetched: &mut [Fetched], spoiled: Vec<Option<FetchOutcome>>) {
        for (fetched, spoiled) in fetched.iter_mut().zip(spoiled) {
            if let Some(outcome) = spoiled {
                fetched.outcome = outcome;
                self.faults.count();
            }
        }
    }
}

impl Board {
    fn spoil(&mut self) -> Option<FetchOutcome> {
        let faults = self.transport.clone();
        let drawn = [
            (faults.unreachable, FetchOutcome::Unreachable),
            (faults.corrupt, FetchOutcome::Corrupt),
            (faults.stale, FetchOutcome::Stale),
        ]
        .map(|(probability, outcome)| self.happens(probability).then_some(outcome));
        drawn.into_iter().flatten().next()
    }
}

impl<T: Transport> FaultyTransport<T> {
    async fn faulty(&self, endpoint: &str, wants: Vec<Want>, deadline: Duration) -> Vec<Fetched> {
        let draw = self.draw(endpoint, wants.len());
        let started = Instant::now();
        if draw.hang || draw.latency > deadline {
            tokio::select! {
                () = self.faults.went_down() => {}
                () = sleep(deadline) => {}
            }
            return self.unreachable(wants);
        }
        pause(draw.latency).await;
        if draw.refused || *self.faults.down.borrow() {
            return self.unreachable(wants);
        }
        let left = deadline.saturating_sub(started.elapsed());
        let mut fetched = match draw.wire {
            Some(wire) => self.through(&wire, endpoint, wants, left).await,
            None => self.inner.fetch(endpoint, wants, left).await,
        };
        if *self.faults.down.borrow() {
            let lost = vec![Some(FetchOutcome::Unreachable); fetched.len()];
            self.spoil(&mut fetched, lost);
        }
        self.spoil(&mut fetched, draw.spoiled);
        fetched
    }

    /// Block by block at the wire's speed, after whoever asked before.
    async fn through(
        &self,
        wire: &Wire,
        endpoint: &str,
        wants: Vec<Want>,
        patience: Duration,
    ) -> Vec<Fetched> {
        let due = Instant::now() + patience;
        let mut fetched = Vec::with_capacity(wants.len());
        let mut wants = wants.into_iter();
        let turn = timeout_at(due, wire.turn.lock()).await;
        let mut there = Instant::now();
        while let Some(next) = wants.as_slice().first().filter(|_| turn.is_ok()) {
            let bytes = next.into.bytes().len() as f64;
            there += Duration::from_secs_f64(bytes / wire.bytes_per_second);
            if timeout_at(due, sleep_until(there)).await.is_err() {
                break;
            }
            let next = wants.next().into_iter().collect();
            fetched.extend(self.inner.fetch(endpoint, next, patience).await);
        }
        if wants.len() > 0 {
            fetched.extend(self.unreachable(wants.collect()));
        }
        fetched
    }
}

impl<T: Transport> Transport for FaultyTransport<T> {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn reaches(&self, endpoint: &str) -> bool {
        self.inner.reaches(endpoint)
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
        Box::pin(self.faulty(endpoint, wants, deadline))
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn report(&self, endpoint: &str, suspect: Suspect) {
        let cut = self.faults.board().cut.contains(endpoint);
        if !cut && !*self.faults.down.borrow() {
            self.inner.report(endpoint, suspect);
        }
    }
}
