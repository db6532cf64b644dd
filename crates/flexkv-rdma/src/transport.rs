//! The reader's half: fetches blocks of owners named by `rdma://address:port` endpoints.
//!
//! A fetch is cut into batches, which share the owner's connection with those of other fetches. Knows
//! nothing of how bytes move.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_handshake::Credential;
use flexkv_ports::{BoxFuture, FetchOutcome, Fetched, Transport, Want};
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
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    known: HashMap<SocketAddr, Known>,
    uses: u64,
}

struct Known {
    peer: Arc<Peer>,
    last_use: u64,
}

impl RdmaTransport {
    /// A transport that fetches into slots of `arena`, and is connected to nobody.
    pub fn new(arena: Arc<RdmaArena>, config: RdmaConfig) -> Self {
        Self {
            arena,
            config,
            peers: Mutex::default(),
        }
    }

    /// What it asked of its device so far.
    pub fn counts(&self) -> RdmaCounts {
        self.arena.counters().read()
    }

    /// Owners connected now.
    pub fn connected(&self) -> usize {
        let peers = self.lock();
        let connected = |known: &&Known| known.peer.queue().is_some();
        peers.known.values().filter(connected).count()
    }

    /// Why there is no connection to the owner at `endpoint`, or why the last one ended; `None` while
    /// all is well.
    pub fn last_refusal(&self, endpoint: &str) -> Option<String> {
        let address = parse(endpoint)?;
        let peer = self.lock().known.get(&address)?.peer.clone();
        peer.reason()
    }

    /// The link to the owner at `endpoint`; none if that is no endpoint.
    fn peer(&self, endpoint: &str) -> Option<Arc<Peer>> {
        let address = parse(endpoint)?;
        let mut peers = self.lock();
        peers.uses += 1;
        let uses = peers.uses;
        if !peers.known.contains_key(&address) {
            peers.make_room(self.config.max_owners);
        }
        let known = peers.known.entry(address).or_insert_with(|| Known {
            peer: Peer::new(address, self.arena.clone(), self.config.clone()),
            last_use: uses,
        });
        known.last_use = uses;
        Some(known.peer.clone())
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

    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// Forgets owners until there are fewer than `most`: those without a connection first, then
    /// those unused for longest.
    fn make_room(&mut self, most: usize) {
        while self.known.len() >= most.max(1) {
            let rank = |known: &Known| (known.peer.queue().is_some(), known.last_use);
            let oldest = self.known.iter().min_by_key(|(_, known)| rank(known));
            let Some(address) = oldest.map(|(address, _)| *address) else {
                return;
            };
            self.known.remove(&address);
        }
    }
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
}

impl std::fmt::Debug for RdmaTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaTransport")
            .field("arena", &self.arena)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
