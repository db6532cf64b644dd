//! The reader's half of the index: follows every node's log into the snapshot.
//!
//! The driver asks for [`Follower::cursors`], reads those logs, and brings what it read to
//! [`Follower::entries`]; now and then it brings the list of members to [`Follower::members`].
//! Nothing is ever dropped because the store was silent: a node is gone only after it was missing
//! from several lists. Does no I/O and reads no clock; the order of peers is fixed.
//!
//! A node's log is first loaded into an owner of the snapshot that is not live; when its checkpoint
//! is complete, that owner becomes live and the node's former one is removed. So a resync never
//! shows less than what was known before. A log that has a gap or a damaged entry is loaded again,
//! at once the first time and then at growing intervals, until the node begins a new epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::log::EntryError;
use crate::record::{NodeId, NodeInfo, NodeRecord, RecordError};
use crate::snapshot::{OwnerId, SnapshotWriter};

mod membership;
mod peer;

use peer::{Peer, State};

/// How a follower goes about it.
#[derive(Clone, Debug)]
pub struct FollowerConfig {
    /// How long a node must be missing from the list of members before it is gone. Longer than the
    /// time between two renewals, so that a store that came back empty drops nobody.
    pub gone_after: Duration,
    /// How long the end of an old log is waited for, when a node has announced the next one.
    pub rotate_grace: Duration,
    /// First pause before a faulty log is loaded again; doubles each time.
    pub reload_min: Duration,
    /// Longest such pause.
    pub reload_max: Duration,
}

impl Default for FollowerConfig {
    fn default() -> Self {
        Self {
            gone_after: Duration::from_secs(5),
            rotate_grace: Duration::from_secs(2),
            reload_min: Duration::from_secs(1),
            reload_max: Duration::from_secs(60),
        }
    }
}

/// Why a member is left out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Its blocks are of another size.
    #[error("its blocks have {found} bytes, ours {expected}")]
    BlockBytes {
        /// Bytes of its blocks.
        found: u32,
        /// Bytes of ours.
        expected: u32,
    },
    /// Its record is another node's.
    #[error("its record is that of `{found}`")]
    Name {
        /// The node in the record.
        found: NodeId,
    },
    /// It serves another namespace.
    #[error("it holds blocks of another namespace")]
    Namespace,
    /// Its record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// An entry cannot be read.
    #[error("entry {sequence}: {error}")]
    Entry {
        /// Its sequence.
        sequence: u64,
        /// What is wrong with it.
        error: EntryError,
    },
    /// Entries are missing.
    #[error("entries from {expected} on are missing, the next one is {found}")]
    Gap {
        /// The sequence that should have come.
        expected: u64,
        /// The sequence that came.
        found: u64,
    },
    /// An entry of a kind that makes no sense where it is.
    #[error("entry {sequence} is of a kind that has no place there")]
    Order {
        /// Its sequence.
        sequence: u64,
    },
}

/// What happened, for counters and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowerEvent {
    /// A log is loaded from its checkpoint although the node's blocks were known before.
    Resync {
        /// The node.
        node: NodeId,
        /// The epoch that is loaded.
        epoch: u32,
    },
    /// A node was missing for too long. Its blocks are forgotten.
    Gone {
        /// The node.
        node: NodeId,
    },
    /// A node was seen for the first time.
    Joined {
        /// The node.
        node: NodeId,
    },
    /// A node's checkpoint is complete: its blocks are visible.
    Loaded {
        /// The node.
        node: NodeId,
        /// The epoch that was loaded.
        epoch: u32,
    },
    /// No owner is free in the snapshot for a node's blocks. Tried again later.
    NoOwnerFree {
        /// The node.
        node: NodeId,
    },
    /// An entry of our own log, with changes, has come back from the store.
    OwnVisible {
        /// Its sequence.
        sequence: u64,
    },
    /// A member is left out; said once, until the reason changes.
    Refused {
        /// The member.
        member: String,
        /// Why.
        reason: Refusal,
    },
    /// A node went on in its next log, and we with it, without reading its checkpoint.
    Rotated {
        /// The node.
        node: NodeId,
        /// The epoch of the next log.
        epoch: u32,
    },
    /// A later life of a node serves at the same endpoint. The earlier one's blocks are forgotten.
    Superseded {
        /// The earlier life.
        node: NodeId,
        /// The later one.
        by: NodeId,
    },
    /// A log is faulty. If it is our own, it wants to be published again.
    Trouble {
        /// The node whose log it is.
        node: NodeId,
        /// The log.
        log: String,
        /// What is wrong.
        trouble: Trouble,
    },
}

/// Follows all nodes. See the module's text.
#[derive(Debug)]
pub struct Follower {
    config: FollowerConfig,
    own: NodeInfo,
    peers: BTreeMap<NodeId, Peer>,
    /// Members left out, and why.
    refused: BTreeMap<String, Refusal>,
    /// Members whose later life is known.
    superseded: BTreeSet<NodeId>,
    /// When members were last listed.
    listed_at: Option<Duration>,
    events: Vec<FollowerEvent>,
    changes: u64,
}

impl Follower {
    /// Events beyond so many that nobody took are not kept.
    const MAX_EVENTS: usize = 4096;

    /// A follower on the node that `own` describes. Its own log is read too, but not into the
    /// snapshot: to see how long changes take to become visible, and whether the log is whole.
    pub fn new(config: FollowerConfig, own: NodeInfo) -> Self {
        Self {
            config,
            own,
            peers: BTreeMap::new(),
            refused: BTreeMap::new(),
            superseded: BTreeSet::new(),
            listed_at: None,
            events: Vec::new(),
            changes: 0,
        }
    }

    /// The logs to read on, and after which sequence.
    pub fn cursors(&self) -> Vec<(String, u64)> {
        let reading = self.peers.values().filter(|peer| peer.is_reading());
        reading
            .map(|peer| (peer.log.clone(), peer.applied))
            .collect()
    }

    /// Nodes whose blocks are visible in the snapshot, and under which owner.
    pub fn peers(&self) -> impl Iterator<Item = (OwnerId, &Arc<NodeRecord>)> {
        let visible = |peer: &'_ Peer| peer.serving;
        self.peers
            .values()
            .filter_map(move |peer| Some((visible(peer)?, &peer.record)))
    }

    /// A number that changes whenever [`Self::peers`] does.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Nodes seen whose blocks are not visible yet, ourselves not counted.
    pub fn loading(&self) -> usize {
        let hidden = |peer: &&Peer| peer.serving.is_none() && !peer.is_own;
        self.peers.values().filter(hidden).count()
    }

    /// Nodes seen, and how many of them had changes within the last so long: ourselves included, if
    /// our lease is in the list.
    pub fn cluster(&self, now: Duration, lately: Duration) -> (usize, usize) {
        let active = |peer: &&Peer| peer.changed_at.is_some_and(|at| now <= at + lately);
        (self.peers.len(), self.peers.values().filter(active).count())
    }

    /// Whether some node is missing from the latest list, and would be gone after more of them.
    pub fn misses_someone(&self) -> bool {
        self.peers.values().any(|peer| !peer.absent.is_zero())
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<FollowerEvent> {
        std::mem::take(&mut self.events)
    }

    fn event(&mut self, event: FollowerEvent) {
        if self.events.len() < Self::MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// Takes what was read of a log. Entries that came before, or that nobody asked for, do nothing.
    pub fn entries(
        &mut self,
        now: Duration,
        log: &str,
        entries: &[(u64, Bytes)],
        writer: &mut SnapshotWriter,
    ) {
        let Ok((node, _)) = NodeId::parse_log(log) else {
            return;
        };
        let Some(mut peer) = self.peers.remove(&node) else {
            return;
        };
        for (sequence, bytes) in entries {
            if peer.log != log || !peer.is_reading() {
                break;
            }
            if *sequence <= peer.applied {
                continue;
            }
            peer.progress(now, &self.config);
            if let Err(trouble) = self.apply(now, &mut peer, *sequence, bytes, writer) {
                self.event(FollowerEvent::Trouble {
                    node: node.clone(),
                    log: log.to_owned(),
                    trouble,
                });
                self.start_over(now, &mut peer, writer);
                break;
            }
        }
        self.peers.insert(node, peer);
    }

    /// Whether the peer's checkpoint is complete.
    fn is_following(peer: &Peer) -> bool {
        matches!(peer.state, State::Following)
    }
}

#[cfg(test)]
mod tests;
