//! Blocks of this node that a peer found to be wrong after it had fetched them.
//!
//! Whoever serves peers puts in what they report, and the node looks at its own copies: nobody drops
//! a block because someone else says so. Knows nothing of how reports travel.

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
