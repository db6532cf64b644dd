//! A transport: pulls blocks out of a peer's tier into slots of ours and verifies each one.
//!
//! Readers pull; nobody writes into another node's memory. A transport knows an address, locations
//! and keys. It knows nothing of the index, and never decides where else a block might be.

use std::time::Duration;

use flexkv_block::{BlockKey, Location};
use futures_util::future::BoxFuture;

use crate::{Suspect, WriteSlot};

/// One block to fetch.
#[derive(Debug)]
pub struct Want {
    /// Where the peer is believed to have it.
    pub location: Location,
    /// Which block it must be.
    pub key: BlockKey,
    /// Where its bytes go. Comes back in [`Fetched`], whatever happens.
    pub into: WriteSlot,
}

/// What became of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchOutcome {
    /// The bytes are in the buffer and verified: key, length and this checksum.
    Fetched(flexkv_block::Checksum),
    /// The peer no longer has that block there. Nothing is wrong with the peer.
    Stale,
    /// What arrived is not the block: checksum, key or length differ. The peer should drop it.
    Corrupt,
    /// No answer before the deadline, no connection, or an answer that is not the protocol's.
    Unreachable,
}

/// A buffer that came back, and what is in it.
#[derive(Debug)]
pub struct Fetched {
    /// What happened.
    pub outcome: FetchOutcome,
    /// The buffer. Holds the block if the outcome is `Fetched`, otherwise anything.
    pub into: WriteSlot,
}

/// Pulls blocks from peers.
pub trait Transport: Send + Sync + 'static {
    /// The scheme of the endpoints it serves, such as `tcp` in `tcp://10.0.0.1:7000`.
    fn scheme(&self) -> &'static str;

    /// Whether the endpoint is one of those that can be reached at all, as far as that can be told
    /// without trying: its scheme is ours, and it is not, say, the memory of another host.
    fn reaches(&self, endpoint: &str) -> bool {
        let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme);
        scheme == Some(self.scheme())
    }

    /// Whether the peers it reaches are on this host, so that what they send crosses no network.
    fn is_local(&self) -> bool {
        false
    }

    /// Whether peers bring blocks to memory for it that lie in a slower tier. Otherwise such blocks
    /// are `Stale` to it.
    fn stages(&self) -> bool {
        false
    }

    /// Fetches `wants` from the peer at `endpoint` within `deadline`. The answer has one entry per
    /// want, in order. Blocks are independent: one may fail and the next arrive.
    /// Dropping the future cancels; buffers then return to their tier once no I/O touches them.
    fn fetch<'a>(
        &'a self,
        endpoint: &'a str,
        wants: Vec<Want>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<Fetched>>;

    /// Tells the peer at `endpoint` that what came from there as `suspect` was not the block, so that
    /// it looks at its own copy. Returns at once; what cannot be told is lost, as everything is over a
    /// transport that carries no reports.
    fn report(&self, _endpoint: &str, _suspect: Suspect) {}
}
