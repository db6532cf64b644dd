//! Convergence in time: within a stated virtual time after the last fault and the last request the
//! owners are right, as `owners` has it.

use std::time::Duration;

use flexkv_block::BlockKey;
use tokio::time::Instant;

use super::owners;
use crate::cluster::Cluster;

/// The stated time: a dead node's lease (10 s) and its absence from the lists of members (5 s in steps
/// of 2 s), a paused retry or reading, and a second for the rest.
pub(crate) const WITHIN: Duration = Duration::from_secs(25);
/// How often to look.
const EVERY: Duration = Duration::from_millis(500);

/// Waits for the owners to be right; says how long that took.
pub(crate) async fn check(
    cluster: &Cluster,
    prompts: &[Vec<BlockKey>],
) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let wrong = match owners::check(cluster, prompts).await {
            Ok(()) => return Ok(began.elapsed()),
            Err(wrong) => wrong,
        };
        if began.elapsed() >= WITHIN {
            return Err(format!("not converged after {WITHIN:?}: {wrong}"));
        }
        tokio::time::sleep(EVERY).await;
    }
}
