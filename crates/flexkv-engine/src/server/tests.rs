//! Who may attach; the rest needs sockets and is tested from outside.

use super::may_attach;

#[test]
fn only_the_nodes_user_and_listed_ones_may_attach() {
    for (own, allowed, peer, expected) in [
        (1000, &[][..], 1000, true),
        (1000, &[], 1001, false),
        (1000, &[], 0, false),
        (0, &[], 1000, false),
        (1000, &[7, 1001], 1001, true),
        (1000, &[7, 1001], 1002, false),
        (1000, &[0], 0, true),
    ] {
        assert_eq!(
            may_attach(own, allowed, peer),
            expected,
            "node {own}, allowed {allowed:?}, engine {peer}"
        );
    }
}
