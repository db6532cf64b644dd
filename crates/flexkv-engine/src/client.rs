//! The engine's half: a [`KvCache`] whose node is another process of this host.
//!
//! Knows how to ask; what the answers mean for a prompt is the engine's affair.

mod attach;
mod connection;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, NamespaceId};
use flexkv_ports::{
    BlockView, BoxFuture, CacheError, Filled, KvCache, LoadLimits, LoadStatus, Loaded, Memory,
    MemorySlice, PrefixHit, Removals, StoreGrant, Ticket,
};

use self::connection::Connection;
use crate::wire::{PlacedBlock, Reply, Request};

/// A node that does not answer for so long, beyond the time the request itself may take, is gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A session with the node of this host. Its futures are to be polled inside a tokio runtime; the
/// one that attached must live on, as it reads the answers.
///
/// When the session ends, for whatever reason, the node takes back all its tickets: blocks that
/// were loaded are no longer pinned, and granted slots may be given to others. A copy out of the
/// arena therefore counts only if [`Self::is_attached`] still holds after it, or if its checksum
/// is right.
///
/// A call whose future is dropped leaves nothing behind at the node: a ticket that the node gave
/// meanwhile is released.
pub struct EngineClient {
    connection: Arc<Connection>,
    arena: Arc<dyn Memory>,
    namespace: NamespaceId,
    block_bytes: usize,
    max_keys: usize,
}

impl EngineClient {
    /// Attaches to the node that listens at `path`.
    ///
    /// # Errors
    /// [`CacheError::Gone`] if no node listens there or it takes no session now;
    /// [`CacheError::Invalid`] if this engine and that node can never fit: another protocol
    /// version, a user that may not attach, an arena that cannot be mapped.
    pub async fn attach(path: impl AsRef<Path>) -> Result<Self, CacheError> {
        attach::attach(path.as_ref()).await
    }

    /// Whether the session still stands.
    pub fn is_attached(&self) -> bool {
        self.connection.is_open()
    }

    /// The node's arena, which all engines of the host share.
    pub fn arena(&self) -> &Arc<dyn Memory> {
        &self.arena
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Reply, CacheError> {
        self.connection.ask(request, ANSWER_WITHIN).await
    }

    /// Refuses a list that the node would refuse, before it is copied.
    fn check_count(&self, what: &str, count: usize) -> Result<(), CacheError> {
        if count <= self.max_keys {
            return Ok(());
        }
        Err(CacheError::Invalid {
            reason: format!(
                "{count} {what} in one request are over the node's limit of {}",
                self.max_keys
            ),
        })
    }

    /// The block's bytes at `offset` of the arena.
    fn place(&self, offset: u64) -> Result<MemorySlice, CacheError> {
        usize::try_from(offset)
            .ok()
            .and_then(|at| MemorySlice::new(self.arena.clone(), at, self.block_bytes))
            .ok_or_else(|| {
                self.connection.broken(format!(
                    "the node named a block at {offset}, outside of its arena of {} bytes",
                    self.arena.len()
                ))
            })
    }

    fn loaded(
        &self,
        local: usize,
        remote: usize,
        placed: Vec<PlacedBlock>,
    ) -> Result<Loaded, CacheError> {
        let blocks = placed
            .into_iter()
            .map(|block| {
                Ok(BlockView {
                    key: block.key,
                    checksum: block.checksum,
                    bytes: self.place(block.offset)?,
                })
            })
            .collect::<Result<_, CacheError>>()?;
        Ok(Loaded {
            blocks,
            local,
            remote,
        })
    }

    fn granted(
        &self,
        ticket: Ticket,
        offsets: Vec<Option<u64>>,
        asked: usize,
    ) -> Result<StoreGrant, CacheError> {
        if offsets.len() != asked {
            return Err(self.connection.broken(format!(
                "the node granted {} slots for {asked} keys",
                offsets.len()
            )));
        }
        let slots = offsets
            .into_iter()
            .map(|offset| offset.map(|offset| self.place(offset)).transpose())
            .collect::<Result<_, CacheError>>()?;
        Ok(StoreGrant { ticket, slots })
    }

    /// What to make of an answer that is not the one asked for.
    fn other(&self, request: &Request<'_>, reply: Reply) -> CacheError {
        match reply {
            Reply::Failed(error) => error,
            reply => self.connection.broken(format!(
                "the node answered {} to {}",
                reply.name(),
                request.name()
            )),
        }
    }

    async fn expect_done(&self, request: Request<'_>) -> Result<(), CacheError> {
        match self.ask(&request).await? {
            Reply::Done => Ok(()),
            reply => Err(self.other(&request, reply)),
        }
    }
}

impl KvCache for EngineClient {
    fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn match_prefix<'a>(
        &'a self,
        keys: &'a [BlockKey],
    ) -> BoxFuture<'a, Result<PrefixHit, CacheError>> {
        Box::pin(async move {
            self.check_count("keys", keys.len())?;
            let request = Request::Match { keys: keys.into() };
            match self.ask(&request).await? {
                Reply::Matched(hit) => Ok(hit),
                reply => Err(self.other(&request, reply)),
            }
        })
    }

    fn load(
        &self,
        ticket: Ticket,
        blocks: usize,
        limits: LoadLimits,
    ) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async move {
            self.connection.expect_load(ticket, limits.deadline);
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            let request = Request::Load {
                ticket,
                blocks,
                limits,
            };
            let started = self.expect_done(request).await;
            if started.is_err() {
                self.connection.forget_load(ticket);
            }
            started
        })
    }

    fn poll(&self, ticket: Ticket) -> BoxFuture<'_, Result<LoadStatus, CacheError>> {
        Box::pin(async move {
            let request = Request::Poll { ticket };
            match self.ask(&request).await? {
                Reply::Pending => Ok(LoadStatus::Pending),
                Reply::Loaded {
                    local,
                    remote,
                    blocks,
                } => self.loaded(local, remote, blocks).map(LoadStatus::Ready),
                reply => Err(self.other(&request, reply)),
            }
        })
    }

    fn wait(&self, ticket: Ticket) -> BoxFuture<'_, Result<Loaded, CacheError>> {
        Box::pin(async move {
            let request = Request::Wait { ticket };
            let within = self.connection.load_takes(ticket) + ANSWER_WITHIN;
            match self.connection.ask(&request, within).await? {
                Reply::Loaded {
                    local,
                    remote,
                    blocks,
                } => self.loaded(local, remote, blocks),
                reply => Err(self.other(&request, reply)),
            }
        })
    }

    fn store<'a>(
        &'a self,
        keys: &'a [BlockKey],
        first: usize,
    ) -> BoxFuture<'a, Result<StoreGrant, CacheError>> {
        Box::pin(async move {
            self.check_count("keys", keys.len())?;
            let request = Request::Store {
                keys: keys.into(),
                first: u32::try_from(first).unwrap_or(u32::MAX),
            };
            match self.ask(&request).await? {
                Reply::Granted { ticket, slots } => {
                    self.granted(ticket, slots, keys.len().saturating_sub(first))
                }
                reply => Err(self.other(&request, reply)),
            }
        })
    }

    fn commit<'a>(
        &'a self,
        ticket: Ticket,
        filled: &'a [Filled],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            self.check_count("filled slots", filled.len())?;
            let filled = filled.into();
            self.expect_done(Request::Commit { ticket, filled }).await
        })
    }

    fn release(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async move {
            self.connection.forget_load(ticket);
            self.expect_done(Request::Release { ticket }).await
        })
    }

    fn removals(&self) -> BoxFuture<'_, Result<Removals, CacheError>> {
        Box::pin(async move {
            // Before the node is asked, so that nothing is missed.
            let removals = self.connection.removals().watch();
            self.expect_done(Request::Watch).await?;
            Ok(removals)
        })
    }
}

impl std::fmt::Debug for EngineClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineClient")
            .field("namespace", &self.namespace)
            .field("attached", &self.is_attached())
            .finish_non_exhaustive()
    }
}

impl Drop for EngineClient {
    fn drop(&mut self) {
        self.connection.close("the engine detached");
    }
}

#[cfg(test)]
mod tests;
