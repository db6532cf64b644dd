//! Asks nodes to drop all their blocks, and waits until they say that they have.
//!
//! Knows nothing of Redis or of how nodes do it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_index::{NodeId, NodeName, ResetRequest};
use flexkv_ports::MetadataStore;
use serde::Serialize;
use tokio::time::{Instant, sleep};

/// How often to look whether nodes have answered.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a request outlives whoever waits for its answers.
const GRACE: Duration = Duration::from_secs(10);

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResetReport {
    /// Nodes that have dropped all their blocks.
    pub done: Vec<String>,
    /// Nodes that have not said so in time.
    pub silent: Vec<String>,
    /// Nodes that left, or lost their lease, before they said so. They may still have blocks.
    pub gone: Vec<String>,
}

/// Has all nodes in `store` drop their blocks, or those called `node`; waits for them up to `within`.
pub async fn reset(
    store: &dyn MetadataStore,
    node: Option<NodeName>,
    within: Duration,
) -> Result<ResetReport> {
    let token = fastrand::Rng::new().u64(..);
    let request = ResetRequest { token, node };
    let deadline = Instant::now() + within;
    let lease = request.lease();
    store
        .renew(&lease, request.encode(), &lease, within + GRACE)
        .await
        .context("cannot ask the nodes")?;
    let waited = wait(store, &request, deadline).await;
    // Nodes fetch from each other again once the request is gone.
    let withdrawn = store.leave(&lease, &lease).await;
    let report = waited?;
    withdrawn.context("cannot withdraw the request; it ends by itself")?;
    Ok(report)
}

async fn wait(
    store: &dyn MetadataStore,
    request: &ResetRequest,
    deadline: Instant,
) -> Result<ResetReport> {
    let (mut known, mut done) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let members = store.members().await;
        let members = match members {
            Ok(members) => members,
            Err(_) if Instant::now() < deadline => {
                sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error).context("cannot see what the nodes answer"),
        };
        let nodes = members.iter().filter_map(|member| member.name.parse().ok());
        let present: BTreeSet<NodeId> = nodes.filter(|node| request.is_for(node)).collect();
        let answers = members
            .iter()
            .filter_map(|member| request.answered_by(&member.name));
        done.extend(answers);
        known.extend(present.iter().cloned());
        let silent: BTreeSet<NodeId> = present.difference(&done).cloned().collect();
        if silent.is_empty() || Instant::now() >= deadline {
            let missing = known.difference(&done);
            let gone = missing.filter(|node| !present.contains(node));
            return Ok(ResetReport {
                gone: names(gone),
                done: names(&done),
                silent: names(&silent),
            });
        }
        sleep(LOOK_EVERY).await;
    }
}

fn names<'n>(nodes: impl IntoIterator<Item = &'n NodeId>) -> Vec<String> {
    nodes.into_iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
