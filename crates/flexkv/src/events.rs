//! What a node process tells whoever started it: one JSON object a line on standard output.
//! Knows nothing of who listens.

use serde::{Deserialize, Serialize};

/// One thing that a node process tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// It serves peers and engines.
    Ready {
        /// Its name.
        name: String,
        /// Its process.
        pid: u32,
        /// Where peers connect.
        endpoint: String,
        /// Where engines attach.
        socket: String,
        /// Where metrics are served.
        metrics: Option<String>,
    },
    /// The number of live peers that it sees has changed.
    Peers {
        /// How many it sees now.
        peers: usize,
    },
    /// It has left the cluster.
    Stopped,
}

impl Event {
    /// The event for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Ready {
                name,
                pid,
                endpoint,
                socket,
                metrics,
            } => {
                let metrics = metrics
                    .as_ref()
                    .map_or(String::new(), |url| format!(", metrics at {url}"));
                format!(
                    "ready: node {name} (process {pid}); engines attach at {socket}, \
                     peers connect at {endpoint}{metrics}"
                )
            }
            Self::Peers { peers } => format!("peers: {peers}"),
            Self::Stopped => "stopped".to_owned(),
        }
    }
}
