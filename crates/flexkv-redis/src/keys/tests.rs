//! The keys, byte by byte, as `docs/protocol.md` has them.

use flexkv_block::NamespaceId;

use super::Keys;

#[test]
fn keys_are_as_documented() {
    let keys = Keys::new("prod-1", NamespaceId::from_u128(0xab));
    let prefix = "flexkv:{prod-1:000000000000000000000000000000ab}";
    assert_eq!(keys.lease("n{0}"), format!("{prefix}:lease:n{{0}}"));
    assert_eq!(keys.log("n/1"), format!("{prefix}:log:n/1"));
    assert_eq!(keys.members(), format!("{prefix}:members"));
}

#[test]
fn names_come_back_out_of_our_keys_only() {
    let keys = Keys::new("a", NamespaceId::from_u128(1));
    let other = Keys::new("a", NamespaceId::from_u128(2));
    let name = "x:lease:y";
    assert_eq!(keys.lease_name(&keys.lease(name)), Some(name));
    assert_eq!(keys.log_name(&keys.log(name)), Some(name));
    assert_eq!(keys.lease_name(&keys.log(name)), None);
    assert_eq!(keys.lease_name(&other.lease(name)), None);
}
