//! Dropping all blocks because someone asks for it through the metadata store.
//!
//! Each request is done once. While one to all nodes stands, nothing is fetched from peers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flexkv_index::{ResetRequest, is_reset_lease};
use flexkv_ports::{Member, MetadataStore};

use crate::Shared;

/// Requests that were done; forgotten when they no longer stand.
#[derive(Default)]
pub(crate) struct Resets {
    done: Mutex<BTreeSet<u64>>,
}

/// Takes requests and answers out of the list of members, and does what is asked for. A store that
/// does not take the answer is told when the members are listed the next time.
pub(crate) async fn heed(
    shared: &Shared,
    store: &dyn MetadataStore,
    members: Vec<Member>,
) -> Vec<Member> {
    let (leases, members): (Vec<_>, Vec<_>) = members
        .into_iter()
        .partition(|member| is_reset_lease(&member.name));
    let requests = leases
        .iter()
        .filter_map(|lease| ResetRequest::decode(&lease.name, &lease.record));
    let requests: Vec<_> = requests.filter(|r| r.is_for(&shared.id)).collect();
    shared.peers.hold(
        shared.now(),
        requests.iter().any(|request| request.node.is_none()),
    );
    for request in &requests {
        if begin(shared, request) {
            let blocks = shared.core.reset(&*shared.tier);
            tracing::warn!(node = %shared.id, blocks, "dropped all blocks, as asked for");
        }
        let answer = request.answer(&shared.id);
        if !leases.iter().any(|lease| lease.name == answer) {
            let ttl = shared.config.lease;
            let told = store.renew(&answer, Bytes::new(), &answer, ttl).await;
            if let Err(error) = told {
                tracing::debug!(node = %shared.id, %error, "could not say that all was dropped");
            }
        }
    }
    let standing = requests.iter().map(|request| request.token).collect();
    let mut done = lock(&shared.resets.done);
    *done = done.intersection(&standing).copied().collect();
    drop(done);
    shared.core.free_doomed(&*shared.tier);
    members
}

/// Whether `request` is yet to be done; it counts as done from now on.
fn begin(shared: &Shared, request: &ResetRequest) -> bool {
    lock(&shared.resets.done).insert(request.token)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
