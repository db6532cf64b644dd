//! The reader's half: fetches blocks of owners named by `rdma://address:port` endpoints.
//!
//! A fetch is cut into batches, which share the owner's connection with those of other fetches. Knows
//! nothing of how bytes move.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_handshake::Credential;
use flexkv_ports::{BoxFuture, FetchOutcome, Fetched, Remembered, Suspect, Transport, Want};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::address::{SCHEME, parse};
use crate::arena::RdmaArena;
use crate::counts::RdmaCounts;
use crate::peer::Peer;
use crate::queue::unreachable;

/// The longest deadline; a longer one means this.
const LONGEST: Duration = Duration::from_secs(3600);

/// How a reader fetches.
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    /// What it proves itself with.
    pub credential: Credential,
    /// Owners remembered; the one unused for longest makes room.
    pub max_owners: usize,
    /// The longest that connecting may take.
    pub open_time: Duration,
    /// How long an owner is left alone after its first failure.
    pub first_pause: Duration,
    /// How long it is left alone at most.
    pub longest_pause: Duration,
}

impl RdmaConfig {
    /// The defaults, with this credential.
    pub fn new(credential: Credential) -> Self {
        Self {
            credential,
            max_owners: 64,
            open_time: Duration::from_secs(1),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
        }
    }
}

/// The reader's half of the transport. Dropping it ends all connections.
pub struct RdmaTransport {
    arena: Arc<RdmaArena>,
    config: RdmaConfig,
    peers: Mutex<Remembered<SocketAddr, Arc<Peer>>>,
}

impl RdmaTransport {
    /// A transport that fetches into slots of `arena`, and is connected to nobody.
    pub fn new(arena: Arc<RdmaArena>, config: RdmaConfig) -> Self {
        Self {
            arena,
            peers: Mutex::new(Remembered::new(config.max_owners)),
            config,
        }
    }

    /// What it asked of its device so far.
    pub fn counts(&self) -> RdmaCounts {
        self.arena.counters().read()
    }

    /// Owners connected now.
    pub fn connected(&self) -> usize {
        let peers = self.lock();
        peers.values().filter(|peer| is_connected(peer)).count()
    }

    /// Why there is no connection to the owner at `endpoint`, or why the last one ended; `None` while
    /// all is well.
    pub fn last_refusal(&self, endpoint: &str) -> Option<String> {
        let address = parse(endpoint)?;
        let peer = self.lock().get(address)?.clone();
        peer.reason()
    }

    /// The link to the owner at `endpoint`; none if that is no endpoint.
    fn peer(&self, endpoint: &str) -> Option<Arc<Peer>> {
        let address = parse(endpoint)?;
        let make = || Peer::new(address, self.arena.clone(), self.config.clone());
        let mut peers = self.lock();
        Some(peers.find_or_make(address, is_connected, make))
    }

    async fn fetch_all(&self, endpoint: &str, wants: Vec<Want>, time: Duration) -> Vec<Fetched> {
        if wants.is_empty() {
            return Vec::new();
        }
        let block_bytes = self.arena.layout().block_bytes();
        if wants
            .iter()
            .any(|want| want.into.bytes().len() != block_bytes)
        {
            tracing::error!(block_bytes, "a slot does not have the size of a block");
            return unreachable(wants);
        }
        let until = Instant::now() + time.min(LONGEST);
        let Some(peer) = self.peer(endpoint) else {
            return unreachable(wants);
        };
        let Some(queue) = peer.connected(until).await else {
            return unreachable(wants);
        };
        let (most, mut wants) = (queue.sizes.blocks, wants.into_iter());
        let mut batches = Vec::with_capacity(wants.len().div_ceil(most));
        while wants.len() > 0 {
            let batch = wants.by_ref().take(most).collect();
            batches.push(queue.clone().fetch(batch, until));
        }
        let fetched: Vec<Fetched> = join_all(batches).await.into_iter().flatten().collect();
        if fetched
            .iter()
            .any(|fetched| fetched.outcome != FetchOutcome::Unreachable)
        {
            peer.works();
        }
        fetched
    }

    fn lock(&self) -> MutexGuard<'_, Remembered<SocketAddr, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_connected(peer: &Arc<Peer>) -> bool {
    peer.queue().is_some()
}

impl Transport for RdmaTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn fetch<'a>(
        &'a self,
        endpoint: &'a str,
        wants: Vec<Want>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<Fetched>> {
        Box::pin(self.fetch_all(endpoint, wants, deadline))
    }

    fn report(&self, endpoint: &str, suspect: Suspect) {
        if let Some(peer) = self.peer(endpoint) {
            peer.report(suspect);
        }
    }
}

impl std::fmt::Debug for RdmaTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaTransport")
            .field("arena", &self.arena)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
