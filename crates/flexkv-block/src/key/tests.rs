//! The chain's properties: incremental, positional, keyed.

use proptest::prelude::*;

use super::*;

fn chain(secret: &str, tokens: &[u32], per_block: usize) -> Vec<BlockKey> {
    let secret = ClusterSecret::derive(secret.as_bytes());
    KeyChain::keys(&secret, BlockKey::from_u128(7), per_block, tokens)
}

#[test]
fn a_key_is_the_hash_of_parent_and_tokens() {
    let secret = ClusterSecret::derive(b"s");
    let root = BlockKey::from_u128(7);
    let mut input = root.to_bytes().to_vec();
    input.extend([1u32, 2].iter().flat_map(|t| t.to_le_bytes()));
    let expected = BlockKey::from_u128(secret.hash(&input));
    assert_eq!(KeyChain::keys(&secret, root, 2, &[1, 2, 3]), [expected]);
}

#[test]
fn another_secret_gives_other_keys() {
    assert_ne!(chain("a", &[1, 2], 2), chain("b", &[1, 2], 2));
}

#[test]
fn a_changed_token_changes_every_later_key() {
    let a = chain("s", &[1, 2, 3, 4, 5, 6], 2);
    let b = chain("s", &[1, 2, 9, 4, 5, 6], 2);
    assert_eq!(a[0], b[0]);
    assert!(a[1..].iter().zip(&b[1..]).all(|(x, y)| x != y));
}

#[test]
fn debug_does_not_print_the_secret() {
    assert_eq!(
        format!("{:?}", ClusterSecret::derive(b"hunter2")),
        "ClusterSecret(..)"
    );
}

proptest! {
    #[test]
    fn appending_in_pieces_gives_the_keys_of_the_whole(
        tokens in prop::collection::vec(any::<u32>(), 0..200),
        cuts in prop::collection::vec(0usize..200, 0..6),
        per_block in 1usize..20,
    ) {
        let secret = ClusterSecret::derive(b"s");
        let root = BlockKey::from_u128(1);
        let mut chain = KeyChain::new(&secret, root, per_block);
        let mut keys = Vec::new();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(tokens.len())).collect();
        cuts.push(0);
        cuts.push(tokens.len());
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            chain.extend(&tokens[pair[0]..pair[1]], &mut keys);
        }
        prop_assert_eq!(&keys, &KeyChain::keys(&secret, root, per_block, &tokens));
        prop_assert_eq!(chain.tip(), keys.last().copied().unwrap_or(root));
    }
}
