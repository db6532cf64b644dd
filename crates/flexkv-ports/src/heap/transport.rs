//! A transport between tiers of one process: a hub maps endpoint names to tiers, a fetch copies.
//!
//! Verification is the same as a real transport's, so corrupted bytes at the owner are found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flexkv_block::Checksum;
use futures_util::future::BoxFuture;

use crate::{
    BlockTier, FetchOutcome, Fetched, ReadSlot, Stager, Suspect, SuspectSender, Transport, Want,
    WriteSlot,
};

/// Scheme of the hub's endpoints.
const SCHEME: &str = "mem";
/// Bytes copied and hashed at a time, so that hashing finds them in cache.
const PIECE: usize = 4096;

/// The endpoints of one process. Clones are the same hub.
#[derive(Clone, Default)]
pub struct HeapHub {
    peers: Arc<Mutex<BTreeMap<String, Peer>>>,
}

/// What is behind an endpoint.
#[derive(Clone)]
struct Peer {
    tier: Arc<dyn BlockTier>,
    /// Where readers' reports go, if anyone wants them.
    suspects: Option<SuspectSender>,
    /// Brings what lies in other tiers.
    stager: Option<Weak<dyn Stager>>,
}

impl HeapHub {
    /// A hub without peers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The endpoint of the peer called `name`.
    pub fn endpoint(name: &str) -> String {
        format!("{SCHEME}://{name}")
    }

    /// Makes `tier` readable at the returned endpoint, in place of any tier that was there.
    pub fn register(&self, name: &str, tier: Arc<dyn BlockTier>) -> String {
        let endpoint = Self::endpoint(name);
        let peer = Peer {
            tier,
            suspects: None,
            stager: None,
        };
        self.peers().insert(endpoint.clone(), peer);
        endpoint
    }

    /// Puts what readers report of the peer called `name` into `suspects`.
    pub fn register_suspects(&self, name: &str, suspects: SuspectSender) {
        if let Some(peer) = self.peers().get_mut(&Self::endpoint(name)) {
            peer.suspects = Some(suspects);
        }
    }

    /// Makes the other tiers of the peer called `name` readable through `stager`, for as long as that
    /// lives.
    pub fn register_stager(&self, name: &str, stager: Weak<dyn Stager>) {
        if let Some(peer) = self.peers().get_mut(&Self::endpoint(name)) {
            peer.stager = Some(stager);
        }
    }

    /// Makes the peer called `name` unreachable; false if it was so already.
    pub fn unregister(&self, name: &str) -> bool {
        self.peers().remove(&Self::endpoint(name)).is_some()
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<String, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, endpoint: &str) -> Option<Peer> {
        self.peers().get(endpoint).cloned()
    }
}

impl std::fmt::Debug for HeapHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.peers().keys()).finish()
    }
}

/// A [`Transport`] to the peers of a [`HeapHub`].
#[derive(Clone, Debug)]
pub struct HeapTransport {
    hub: HeapHub,
}

impl HeapTransport {
    /// A transport to the peers of `hub`, those registered later included.
    pub fn new(hub: HeapHub) -> Self {
        Self { hub }
    }

    /// One block, from whoever is at `endpoint` now, or as it was staged before.
    fn fetch_one(&self, endpoint: &str, want: Want, staged: Option<ReadSlot>) -> Fetched {
        let outcome = match (staged, self.hub.peer(endpoint)) {
            (_, None) => FetchOutcome::Unreachable,
            (Some(block), _) => copy_verified(&block, &want.into),
            (None, Some(peer)) => match peer.tier.pin(want.location, want.key) {
                Err(_) => FetchOutcome::Stale,
                Ok(block) => copy_verified(&block, &want.into),
            },
        };
        Fetched {
            outcome,
            into: want.into,
        }
    }

    /// The blocks of other tiers than memory, brought there; one answer per want.
    async fn stage(
        &self,
        endpoint: &str,
        wants: &[Want],
        deadline: Duration,
    ) -> Vec<Option<ReadSlot>> {
        let mut staged: Vec<Option<ReadSlot>> = wants.iter().map(|_| None).collect();
        let Some(peer) = self.hub.peer(endpoint) else {
            return staged;
        };
        let tier = peer.tier.shape().tier;
        let elsewhere = |i: &usize| wants[*i].location.tier != tier;
        let places: Vec<usize> = (0..wants.len()).filter(elsewhere).collect();
        let stager = peer.stager.and_then(|stager| stager.upgrade());
        let (Some(stager), false) = (stager, places.is_empty()) else {
            return staged;
        };
        let named = places.iter().map(|i| (wants[*i].location, wants[*i].key));
        let pins = stager.stage(named.collect(), deadline).await;
        for (i, pin) in places.into_iter().zip(pins) {
            staged[i] = pin;
        }
        staged
    }
}

impl Transport for HeapTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
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
        Box::pin(async move {
            let staged = self.stage(endpoint, &wants, deadline).await;
            let mut fetched = Vec::with_capacity(wants.len());
            for (want, staged) in wants.into_iter().zip(staged) {
                // Lets other fetches, evictions and cancellations happen between two blocks.
                tokio::task::yield_now().await;
                fetched.push(self.fetch_one(endpoint, want, staged));
            }
            fetched
        })
    }

    fn report(&self, endpoint: &str, suspect: Suspect) {
        if let Some(suspects) = self.hub.peer(endpoint).and_then(|peer| peer.suspects) {
            suspects.tell(suspect);
        }
    }
}

/// Copies the block and checks what was copied, not what is at the source.
fn copy_verified(from: &ReadSlot, into: &WriteSlot) -> FetchOutcome {
    let (from_bytes, into_bytes) = (from.bytes(), into.bytes());
    if from_bytes.len() != into_bytes.len() {
        return FetchOutcome::Corrupt;
    }
    let mut sum = Checksum::stream();
    let mut piece = [0; PIECE];
    for at in (0..from_bytes.len()).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(from_bytes.len() - at)];
        from_bytes.read(at, piece);
        sum.update(piece);
        into_bytes.write(at, piece);
    }
    if sum.finish() == from.checksum() {
        FetchOutcome::Fetched(from.checksum())
    } else {
        FetchOutcome::Corrupt
    }
}
