//! What nodes keep of themselves in the metadata store, and the names in it: what is accepted is
//! written again as it was.
//!
//! Knows nothing of the store.

use flexkv_block::{Checksum, NamespaceId};
use flexkv_index::{NodeId, NodeInfo, NodeRecord};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "node_record",
    run,
    seeds,
};

fn run(data: &[u8]) {
    check(data);
    // No fuzzer guesses a checksum: before it are the fields.
    if let Some((fields, _)) = data.split_last_chunk::<8>() {
        let sum = Checksum::of(fields).0.to_le_bytes();
        check(&[fields, &sum].concat());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        names(text);
    }
}

fn check(bytes: &[u8]) {
    match NodeRecord::decode(bytes) {
        Ok(record) => {
            assert_eq!(record.encode(), bytes);
            names(&record.log());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A name that is accepted is written as it was read.
fn names(text: &str) {
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string(), text);
    }
    if let Ok((node, epoch)) = NodeId::parse_log(text) {
        assert_eq!(node.log(epoch), text);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let node = "node-a.00000000deadbeef";
    let endpoints = ["tcp://10.0.0.1:7400", "shm:///run/flexkv/arena"];
    let record = node.parse().ok().and_then(|node| {
        let namespace = NamespaceId::from_u128(77);
        let endpoints = endpoints.map(str::to_owned).to_vec();
        let info = NodeInfo::new(node, namespace, 4096, "rack-1".to_owned(), endpoints).ok()?;
        Some(NodeRecord {
            info,
            epoch: 3,
            log_start: 12,
            rotated: true,
        })
    });
    let record = record.map(|record| record.encode().to_vec());
    let texts = [node.as_bytes().to_vec(), format!("{node}.3").into_bytes()];
    record.into_iter().chain(texts).collect()
}
