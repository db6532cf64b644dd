//! The metadata store's decorator: loses requests or replies, delays, and goes down.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::Faults;
use crate::{LogCursor, LogEntry, LogRead, Member, MetadataStore, Renewal, StoreError};

/// A [`MetadataStore`] that fails as its [`Faults`] say.
#[derive(Clone, Debug)]
pub struct FaultyStore<S> {
    inner: S,
    faults: Faults,
}

/// What was drawn for one call.
struct Draw {
    lost_request: bool,
    lost_reply: bool,
    patience: Duration,
    latency: Duration,
}

impl<S> FaultyStore<S> {
    /// `inner`, failing as `faults` say.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn draw(&self) -> Draw {
        let mut board = self.faults.board();
        let faults = board.store.clone();
        Draw {
            lost_request: board.happens(faults.lost_request),
            lost_reply: board.happens(faults.lost_reply),
            patience: faults.patience,
            latency: board.delay(&faults.latency),
        }
    }

    /// Does `call` with what was drawn for it, unless or until the store goes down.
    async fn faulty<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let draw = self.draw();
        tokio::select! {
            biased;
            () = self.faults.went_down() => Err(self.unavailable("it is down")),
            result = self.perform(draw, call) => result,
        }
    }

    async fn perform<T>(
        &self,
        draw: Draw,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        pause(draw.latency).await;
        if draw.lost_request {
            pause(draw.patience).await;
            return Err(self.unavailable("the request was lost"));
        }
        let result = call.await;
        if draw.lost_reply {
            pause(draw.patience).await;
            return Err(self.unavailable("the reply was lost"));
        }
        result
    }

    fn unavailable(&self, reason: &str) -> StoreError {
        self.faults.count();
        StoreError::Unavailable {
            reason: reason.to_owned(),
        }
    }
}

/// Sleeps, but lets a quiet decorator be as fast as what it wraps.
pub(super) async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

impl<S: MetadataStore> MetadataStore for FaultyStore<S> {
    fn renew<'a>(
        &'a self,
        name: &'a str,
        record: Bytes,
        log: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        Box::pin(self.faulty(self.inner.renew(name, record, log, ttl)))
    }

    fn leave<'a>(&'a self, name: &'a str, log: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.faulty(self.inner.leave(name, log)))
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, StoreError>> {
        Box::pin(self.faulty(self.inner.members()))
    }

    fn append<'a>(
        &'a self,
        log: &'a str,
        entries: &'a [LogEntry],
        create: bool,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.faulty(self.inner.append(log, entries, create, ttl)))
    }

    fn read<'a>(
        &'a self,
        cursors: &'a [LogCursor],
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<LogRead>, StoreError>> {
        Box::pin(self.faulty(self.inner.read(cursors, limit, wait)))
    }

    fn retire<'a>(&'a self, log: &'a str, ttl: Duration) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.faulty(self.inner.retire(log, ttl)))
    }
}
