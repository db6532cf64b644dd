//! The keys, byte by byte, as `docs/protocol.md` has them.

use std::collections::BTreeSet;

use flexkv_block::NamespaceId;

use super::{GROUPS, Keys, group};

#[test]
fn keys_are_as_documented() {
    let keys = Keys::new("prod-1", NamespaceId::from_u128(0xab));
    let tag = "prod-1:000000000000000000000000000000ab";
    assert_eq!(keys.lease("n{0}"), format!("flexkv:{{{tag}}}:lease:n{{0}}"));
    assert_eq!(keys.members(), format!("flexkv:{{{tag}}}:members"));
    assert_eq!(keys.changes(), format!("flexkv:{{{tag}}}:changes"));
    assert_eq!(keys.gone(), format!("flexkv:{{{tag}}}:gone"));
    // XXH3-64 of no bytes is 0x2d06800538d394c2.
    assert_eq!(keys.log(""), format!("flexkv:{{{tag}:2}}:log:"));
}

#[test]
fn names_come_back_out_of_our_keys_only() {
    let keys = Keys::new("a", NamespaceId::from_u128(1));
    let other = Keys::new("a", NamespaceId::from_u128(2));
    for name in ["x:lease:y", "", "x}:log:y", "{a}b"] {
        assert_eq!(keys.lease_name(&keys.lease(name)), Some(name));
        assert_eq!(keys.log_name(&keys.log(name)), Some(name));
        assert_eq!(keys.lease_name(&keys.log(name)), None);
        assert_eq!(keys.log_name(&keys.lease(name)), None);
        assert_eq!(keys.lease_name(&other.lease(name)), None);
        assert_eq!(keys.log_name(&other.log(name)), None);
    }
}

#[test]
fn leases_share_a_slot_and_logs_are_spread() {
    let keys = Keys::new("a", NamespaceId::from_u128(1));
    for key in [
        keys.lease("n"),
        keys.changes(),
        keys.gone(),
        keys.lease("{m}"),
    ] {
        assert_eq!(super::slot(&key), keys.lease_slot(), "{key}");
    }
    let logs: Vec<_> = (0..1000).map(|n| format!("node-{n}.{n:016x}.1")).collect();
    let slots: BTreeSet<_> = logs.iter().map(|log| keys.log_slot(log)).collect();
    assert_eq!(slots.len(), usize::from(GROUPS));
    for log in &logs {
        let mates = logs.iter().filter(|mate| group(mate) == group(log));
        let slots: BTreeSet<_> = mates.map(|mate| keys.log_slot(mate)).collect();
        assert_eq!(slots.len(), 1, "{log}: a group has one slot");
    }
}
