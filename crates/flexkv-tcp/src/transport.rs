//! The reader's half: fetches blocks from the peers named by `tcp://address:port` endpoints, or
//! `tls://address:port` with TLS.
//!
//! Keeps a few connections to each peer and forgets peers that are no longer used. Knows nothing
//! of what goes over a connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::NamespaceId;
use flexkv_handshake::Credential;
use flexkv_ports::{BoxFuture, FetchOutcome, Fetched, Suspect, Transport, Want};
use tokio::time::{Instant, timeout_at};

use crate::batch::Batch;
use crate::deadline;
use crate::peer::Peer;
use crate::tls::Tls;

/// Scheme of the endpoints.
pub(crate) fn scheme(tls: Option<&Tls>) -> &'static str {
    if tls.is_some() { "tls" } else { "tcp" }
}

/// How a reader fetches.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// The namespace whose blocks are fetched; owners of another one refuse.
    pub namespace: NamespaceId,
    /// Bytes of a block; owners of another size refuse.
    pub block_bytes: u32,
    /// What the reader proves itself with; owners must know the same secret.
    pub credential: Credential,
    /// Certificates, if bytes are to pass through TLS.
    pub tls: Option<Tls>,
    /// Connections to one peer, each with a thread. One alone is bound by the copy into memory;
    /// more than two gain nothing on two cores.
    pub connections: usize,
    /// Peers remembered; the one unused for longest makes room.
    pub max_peers: usize,
    /// The longest that connecting and shaking hands may take.
    pub open_time: Duration,
    /// How long a connection is left alone after its first failure.
    pub first_pause: Duration,
    /// How long it is left alone at most.
    pub longest_pause: Duration,
}

impl TransportConfig {
    /// The defaults for blocks of `block_bytes` bytes of `namespace`.
    pub fn new(namespace: NamespaceId, block_bytes: u32, credential: Credential) -> Self {
        Self {
            namespace,
            block_bytes,
            credential,
            tls: None,
            connections: 2,
            max_peers: 1024,
            open_time: Duration::from_secs(1),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
        }
    }
}

/// The reader's half of the TCP transport. Dropping it closes its connections and ends its
/// threads, without waiting for them.
pub struct TcpTransport {
    config: TransportConfig,
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    known: HashMap<SocketAddr, Arc<Peer>>,
    uses: u64,
}

impl TcpTransport {
    /// A transport without connections.
    pub fn new(config: TransportConfig) -> Self {
        Self {
            config,
            peers: Mutex::default(),
        }
    }

    /// Why there was no agreement with the owner at `endpoint` at the last attempt; `None` once there
    /// is.
    pub fn last_refusal(&self, endpoint: &str) -> Option<String> {
        let address = self.parse(endpoint)?;
        let peer = self.lock().known.get(&address).cloned();
        peer?.refusal()
    }

    /// The peer at `endpoint`; `None` if that is no address or there are too many busy peers.
    fn peer(&self, endpoint: &str) -> Option<Arc<Peer>> {
        let Some(address) = self.parse(endpoint) else {
            let scheme = self.scheme();
            tracing::warn!(
                endpoint,
                "not an endpoint of the form {scheme}://address:port"
            );
            return None;
        };
        let mut peers = self.lock();
        peers.uses += 1;
        let uses = peers.uses;
        if !peers.known.contains_key(&address) && !peers.make_room(self.config.max_peers) {
            tracing::warn!(endpoint, "too many busy peers");
            return None;
        }
        let peer = peers.known.entry(address);
        let peer = peer.or_insert_with(|| Peer::new(address, self.config.clone()));
        peer.touch(uses);
        Some(peer.clone())
    }

    async fn fetch_all(&self, endpoint: &str, wants: Vec<Want>, time: Duration) -> Vec<Fetched> {
        if wants.is_empty() {
            return Vec::new();
        }
        if !self.slots_fit(&wants) {
            return unreachable(wants);
        }
        let due = deadline::until(time);
        let Some(peer) = self.peer(endpoint) else {
            return unreachable(wants);
        };
        let Ok(Ok(_room)) = timeout_at(Instant::from_std(due), peer.room.acquire()).await else {
            return unreachable(wants);
        };
        let (batch, mut answer) = Batch::new(wants, due);
        let batch = Abandon(batch);
        if !peer.fetch(&batch.0) {
            batch.0.fail_rest();
        }
        if let Ok(answer) = timeout_at(Instant::from_std(due), &mut answer).await {
            return answer.unwrap_or_default();
        }
        batch.0.fail_rest();
        // What is left is in the hands of threads, whose sockets time out at the same deadline.
        answer.await.unwrap_or_default()
    }

    /// Whether the slots have the size that was agreed on with the owners.
    fn slots_fit(&self, wants: &[Want]) -> bool {
        let bytes = self.config.block_bytes as usize;
        let misfit = wants.iter().find(|want| want.into.bytes().len() != bytes);
        if let Some(want) = misfit {
            let slot = want.into.bytes().len();
            tracing::error!(slot, bytes, "slot does not have the size of a block");
        }
        misfit.is_none()
    }

    /// The address of an endpoint. Names are not resolved: that could take any time.
    fn parse(&self, endpoint: &str) -> Option<SocketAddr> {
        let address = endpoint.strip_prefix(self.scheme())?.strip_prefix("://")?;
        address.parse().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// Forgets the idle peer that is unused for longest if there are `most`; whether there is room.
    fn make_room(&mut self, most: usize) -> bool {
        if self.known.len() < most {
            return true;
        }
        let idle = self.known.iter().filter(|(_, peer)| peer.is_idle());
        let oldest = idle.min_by_key(|(_, peer)| peer.last_use());
        let Some(address) = oldest.map(|(address, _)| *address) else {
            return false;
        };
        if let Some(peer) = self.known.remove(&address) {
            peer.stop();
        }
        true
    }
}

impl Transport for TcpTransport {
    fn scheme(&self) -> &'static str {
        scheme(self.config.tls.as_ref())
    }

    fn stages(&self) -> bool {
        true
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

impl Drop for TcpTransport {
    fn drop(&mut self) {
        let peers = std::mem::take(&mut self.lock().known);
        peers.values().for_each(|peer| peer.stop());
    }
}

impl std::fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpTransport")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A batch whose untaken wants are given up when its fetch is dropped.
struct Abandon(Arc<Batch>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.forget_rest();
    }
}

fn unreachable(wants: Vec<Want>) -> Vec<Fetched> {
    let fetched = wants.into_iter().map(|want| Fetched {
        outcome: FetchOutcome::Unreachable,
        into: want.into,
    });
    fetched.collect()
}
