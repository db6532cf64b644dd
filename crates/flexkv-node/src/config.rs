//! What a node is told when it starts.

use std::time::Duration;

use flexkv_block::NamespaceId;
use flexkv_index::{NodeName, PolicyKind};

/// Which blocks are written to the staged tier, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Those that engines computed here. What was fetched is its owner's to write.
    #[default]
    Computed,
    /// Those that were used again while they were in memory.
    Reused,
    /// All that come into memory, fetched ones too.
    All,
}

/// Settings of one node. [`NodeConfig::new`] gives defaults that suit a cluster on one network.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name in logs and metrics; need not be unique.
    pub name: NodeName,
    /// The one deployment whose blocks this node keeps.
    pub namespace: NamespaceId,
    /// Operator's label of where the node is, such as a rack; empty for none.
    pub locality: String,
    /// Addresses at which peers fetch from this node, such as `tcp://10.0.0.1:7000`.
    pub endpoints: Vec<String>,
    /// How long the metadata store keeps this node's lease unless it is renewed.
    pub lease: Duration,
    /// How long changes are gathered before they are published together; longer in a large or busy
    /// cluster, see [`Self::store_bytes_per_second`].
    pub batch_interval: Duration,
    /// How long they are gathered at most.
    pub batch_interval_max: Duration,
    /// What all nodes together may exchange with the metadata store in a second; must be the same in
    /// all of them. Intervals grow with the cluster and its changes so that this holds.
    pub store_bytes_per_second: u64,
    /// Most bytes of changes that wait for a store that does not answer; over that they are dropped
    /// and everything held is published anew when it does.
    pub log_queue_bytes: usize,
    /// Most blocks of one entry of the log, up to 4096: a change of more is published in several.
    pub log_entry_blocks: usize,
    /// A log is not begun anew before it has this many bytes of changes.
    pub log_rotate_bytes: usize,
    /// How often the list of members is read.
    pub members_interval: Duration,
    /// How long a peer may be missing from the list before its blocks are forgotten.
    pub gone_after: Duration,
    /// Longest wait for one peer within a load; then its blocks are sought elsewhere.
    pub fetch_timeout: Duration,
    /// A peer that failed is left out for this long, doubled with every further failure.
    pub peer_backoff: Duration,
    /// The longest that a failed peer is left out.
    pub peer_backoff_max: Duration,
    /// Which blocks are written to the staged tier.
    pub admission: Admission,
    /// What memory and the staged tier give up first.
    pub policies: [PolicyKind; 2],
}

impl NodeConfig {
    /// The defaults for node `name` of `namespace`.
    pub fn new(name: NodeName, namespace: NamespaceId) -> Self {
        Self {
            name,
            namespace,
            locality: String::new(),
            endpoints: Vec::new(),
            lease: Duration::from_secs(10),
            batch_interval: Duration::from_millis(2),
            batch_interval_max: Duration::from_secs(5),
            store_bytes_per_second: 100_000_000,
            log_queue_bytes: 16 << 20,
            log_entry_blocks: 4096,
            log_rotate_bytes: 1 << 20,
            members_interval: Duration::from_secs(2),
            gone_after: Duration::from_secs(5),
            fetch_timeout: Duration::from_secs(1),
            peer_backoff: Duration::from_millis(200),
            peer_backoff_max: Duration::from_secs(10),
            admission: Admission::default(),
            policies: [PolicyKind::default(); 2],
        }
    }
}
