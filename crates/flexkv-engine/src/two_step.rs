//! The two-step API of engines: match says how much of a prompt exists, launch brings it here.
//!
//! Works on any [`KvCache`]. What an engine promises for a ticket, and when, is its own affair; so
//! is the memory into which the blocks are copied.

mod shards;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::BlockKey;
use flexkv_ports::{CacheError, KvCache, LoadLimits, LoadStatus, Loaded, PrefixHit, Ticket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::lock::Lock;

pub use self::shards::{ShardsHit, ShardsLoaded};

/// Prefetches that run at once; nobody waits for them, so nobody else slows them down.
const PREFETCHES: usize = 256;

/// The two steps on one cache. Clones are the same.
#[derive(Clone)]
pub struct TwoStep {
    cache: Arc<dyn KvCache>,
    prefetches: Arc<Semaphore>,
    waits: Arc<Lock<HashMap<Ticket, Ended>>>,
}

/// Tells how a load ended, once it has.
type Ended = watch::Receiver<Option<Result<Loaded, CacheError>>>;

impl TwoStep {
    /// The two steps on `cache`.
    pub fn new(cache: Arc<dyn KvCache>) -> Self {
        Self {
            cache,
            prefetches: Arc::new(Semaphore::new(PREFETCHES)),
            waits: Arc::default(),
        }
    }

    /// How many leading blocks exist; the ticket is to be launched, and cancelled in the end.
    ///
    /// # Errors
    /// As [`KvCache::match_prefix`].
    pub async fn match_prefix(&self, keys: &[BlockKey]) -> Result<PrefixHit, CacheError> {
        self.cache.match_prefix(keys).await
    }

    /// Starts bringing the first `blocks` blocks of a match here. What has been verified within the
    /// limits is the result.
    ///
    /// # Errors
    /// As [`KvCache::load`].
    pub async fn launch(
        &self,
        ticket: Ticket,
        blocks: usize,
        limits: impl Into<LoadLimits>,
    ) -> Result<(), CacheError> {
        self.cache.load(ticket, blocks, limits.into()).await
    }

    /// What a launched ticket brought, or `None` while it is under way. The blocks stay where they
    /// are until the ticket is cancelled.
    ///
    /// # Errors
    /// As [`KvCache::poll`].
    pub async fn poll(&self, ticket: Ticket) -> Result<Option<Loaded>, CacheError> {
        match self.cache.poll(ticket).await? {
            LoadStatus::Pending => Ok(None),
            LoadStatus::Ready(loaded) => Ok(Some(loaded)),
        }
    }

    /// As [`Self::poll`], but waits up to `within` for the load to end. To be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// As [`KvCache::wait`].
    pub async fn wait(
        &self,
        ticket: Ticket,
        within: Duration,
    ) -> Result<Option<Loaded>, CacheError> {
        if let Some(loaded) = self.poll(ticket).await? {
            return Ok(Some(loaded));
        }
        let mut ended = self.ended(ticket);
        match timeout(within, ended.wait_for(Option::is_some)).await {
            Err(_) => Ok(None),
            Ok(Ok(result)) => result.clone().transpose(),
            Ok(Err(_)) => Err(CacheError::Gone {
                reason: "the runtime that waited for a load has ended".to_owned(),
            }),
        }
    }

    /// Where the end of a load will be told. The cache waits once for each load, however often its
    /// callers give up and ask again.
    fn ended(&self, ticket: Ticket) -> Ended {
        let mut waits = self.waits.lock();
        let begin = || {
            let (tell, ended) = watch::channel(None);
            let (cache, waits) = (self.cache.clone(), self.waits.clone());
            tokio::spawn(async move {
                let result = cache.wait(ticket).await;
                waits.lock().remove(&ticket);
                tell.send_replace(Some(result));
            });
            ended
        };
        waits.entry(ticket).or_insert_with(begin).clone()
    }

    /// Gives up all that a ticket holds. A ticket that is not known holds nothing.
    ///
    /// # Errors
    /// [`CacheError::Gone`] if the node is; then it holds nothing either.
    pub async fn cancel(&self, ticket: Ticket) -> Result<(), CacheError> {
        match self.cache.release(ticket).await {
            Err(CacheError::UnknownTicket { .. }) => Ok(()),
            ended => ended,
        }
    }

    /// Brings what exists of a prompt here, for whoever asks next. The ticket ends by itself with
    /// the load; it serves to cancel it earlier. A hint that comes while very many are being
    /// followed is dropped. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// As [`KvCache::match_prefix`] and [`KvCache::load`].
    pub async fn prefetch(
        &self,
        keys: &[BlockKey],
        deadline: Duration,
    ) -> Result<Ticket, CacheError> {
        let PrefixHit { ticket, blocks, .. } = self.match_prefix(keys).await?;
        let permit = self.prefetches.clone().try_acquire_owned();
        let (true, Ok(permit)) = (blocks > 0, permit) else {
            return self.cancel(ticket).await.map(|()| ticket);
        };
        if let Err(error) = self.launch(ticket, blocks, deadline).await {
            // The launch's error is the one to tell; a node that is gone has released the ticket.
            let _ = self.cancel(ticket).await;
            return Err(error);
        }
        let steps = self.clone();
        tokio::spawn(async move {
            let ended = steps.cache.wait(ticket).await;
            let released = steps.cancel(ticket).await;
            if let Err(error) = ended.and(released) {
                tracing::debug!(%error, "a prefetch ended early");
            }
            drop(permit);
        });
        Ok(ticket)
    }
}

impl std::fmt::Debug for TwoStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TwoStep({})", self.cache.namespace())
    }
}
