//! Requests to drop all blocks and the answers to them, as leases of the metadata store: what is
//! accepted is written again as it was, nothing of a reset is taken for a node, and each answer tells
//! who gave it.
//!
//! Knows nothing of the store, or of how blocks are dropped.

use flexkv_block::Checksum;
use flexkv_index::{NodeId, ResetRequest, is_reset_lease};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "reset_request",
    run,
    seeds,
};

/// Parts the lease's name from what it says.
const SEPARATOR: u8 = b'\n';

fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == SEPARATOR);
    let Some(Ok(name)) = parts.next().map(str::from_utf8) else {
        return;
    };
    let bytes = parts.next().unwrap_or_default();
    check(name, bytes);
    // No fuzzer guesses a checksum: before it are the fields.
    if let Some((fields, _)) = bytes.split_last_chunk::<8>() {
        let sum = Checksum::of(fields).0.to_le_bytes();
        check(name, &[fields, &sum].concat());
    }
}

fn check(name: &str, bytes: &[u8]) {
    let node = name.parse::<NodeId>();
    assert!(node.is_err() || !is_reset_lease(name), "{name}");
    let Some(request) = ResetRequest::decode(name, bytes) else {
        return;
    };
    assert!(is_reset_lease(name));
    assert_eq!(request.lease(), name);
    assert_eq!(request.encode(), bytes);
    assert_eq!(request.answered_by(name), None);
    for node in nodes() {
        let meant = request.node.as_ref();
        assert_eq!(request.is_for(&node), meant.is_none_or(|n| *n == node.name));
        let answer = request.answer(&node);
        assert!(is_reset_lease(&answer));
        assert_eq!(ResetRequest::decode(&answer, bytes), None);
        assert_eq!(request.answered_by(&answer), Some(node));
    }
}

fn nodes() -> impl Iterator<Item = NodeId> {
    let names = ["a.0000000000000001", "node-b.00000000deadbeef"];
    names.into_iter().filter_map(|name| name.parse().ok())
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |node: Option<&str>| {
        let request = ResetRequest {
            token: 0x1234_5678_9abc_def0,
            node: node.and_then(|name| name.parse().ok()),
        };
        let lease = request.lease().into_bytes();
        [lease, vec![SEPARATOR], request.encode().to_vec()].concat()
    };
    let answer = "@reset.123456789abcdef0.node-b.00000000deadbeef";
    vec![seed(None), seed(Some("node-b")), answer.into()]
}
