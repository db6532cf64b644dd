//! Blocks of this node that a peer found to be wrong after it had fetched them.
//!
//! Whoever serves peers puts in what they report, and the node looks at its own copies: nobody drops
//! a block because someone else says so. Knows the bytes of a report (`docs/protocol.md`, section Shared
//! memory), and nothing of how they travel.

use flexkv_block::{BlockKey, Location};
use tokio::sync::mpsc;

/// Reports that wait to be looked at; what comes beyond that is lost.
const WAITING_MAX: usize = 1024;

/// A block that did not arrive as what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Where its owner has it.
    pub location: Location,
    /// Which block it should be.
    pub key: BlockKey,
}

/// First bytes of a report.
const MAGIC: [u8; 8] = *b"FKSUSPCT";

impl Suspect {
    /// Bytes of a report.
    pub const BYTES: usize = 32;

    /// The report, for a connection that carries nothing else.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.location.to_word().to_le_bytes());
        out[16..32].copy_from_slice(&self.key.to_bytes());
        out
    }

    /// Reads a report; `None` if it is none, or names no location.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (word, rest) = rest.split_first_chunk()?;
        let (key, _) = rest.split_first_chunk()?;
        let location = Location::from_word(u64::from_le_bytes(*word))?;
        (*magic == MAGIC).then(|| Self {
            location,
            key: BlockKey::from_bytes(*key),
        })
    }
}

/// Takes reports. Clones put into the same queue.
#[derive(Clone, Debug)]
pub struct SuspectSender(mpsc::Sender<Suspect>);

/// The reports, in the order in which they came.
#[derive(Debug)]
pub struct SuspectReceiver(mpsc::Receiver<Suspect>);

/// A queue of reports, of bounded length.
pub fn suspects() -> (SuspectSender, SuspectReceiver) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (SuspectSender(sender), SuspectReceiver(receiver))
}

impl SuspectSender {
    /// Puts a report in; false if it is lost, as too many wait or nobody looks any more.
    pub fn tell(&self, suspect: Suspect) -> bool {
        self.0.try_send(suspect).is_ok()
    }
}

impl SuspectReceiver {
    /// The next report; `None` once nobody can put any in.
    pub async fn next(&mut self) -> Option<Suspect> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests;
