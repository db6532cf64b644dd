//! The chain's properties: incremental, positional, keyed.

use proptest::prelude::*;

use super::*;

fn chain(secret: &str, tokens: &[u32], per_block: usize) -> Vec<BlockKey> {
    let secret = ClusterSecret::derive(secret.as_bytes());
    KeyChain::keys(&secret, BlockKey::from_u128(7), per_block, tokens)
}

/// The keys of a prompt, chunk by chunk as the table above `crate::key` says.
fn by_definition(tokens: &[u32], per_block: usize) -> Vec<BlockKey> {
    let secret = ClusterSecret::derive(b"s");
    let mut scratch = Scratch::new();
    let mut sum = 0;
    let mut add = |sum: &mut u128, position: usize, chunk: Chunk| {
        secret
            .keys
            .add(sum, position as u64, &[chunk], &mut scratch);
    };
    add(&mut sum, 1, [7, 0, 0, 0]);
    add(&mut sum, 2, [per_block as u32, 0, 1, 0]);
    let stride = per_block.div_ceil(4).next_power_of_two();
    let mut keys = Vec::new();
    for (i, block) in tokens.chunks_exact(per_block).enumerate() {
        for (j, tokens) in block.chunks(4).enumerate() {
            let mut chunk = [0; 4];
            chunk[..tokens.len()].copy_from_slice(tokens);
            add(&mut sum, 256 + i * stride + j, chunk);
        }
        keys.push(BlockKey(secret.keys.code(sum)));
    }
    keys
}

#[test]
fn keys_are_those_of_the_definition() {
    let tokens: Vec<u32> = (0..5_000u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    for per_block in [1, 2, 4, 5, 8, 12, 16, 64, 100, 512, 1024, 1025, 2400] {
        let expected = by_definition(&tokens, per_block);
        assert_eq!(chain("s", &tokens, per_block), expected, "{per_block}");
    }
}

#[test]
fn zeros_at_the_end_of_a_block_are_tokens() {
    let per_block = [1, 2, 3, 4, 5];
    let keys = per_block.map(|per_block| chain("s", &[9, 0, 0, 0, 0], per_block)[0]);
    for (i, key) in keys.iter().enumerate() {
        assert!(!keys[..i].contains(key));
    }
}

#[test]
fn a_name_is_not_another_one_nor_a_chain() {
    let secret = ClusterSecret::derive(b"s");
    let long = vec![0; 10_000];
    let names = [0, 1, 15, 16, 17, 4096, 4097, 10_000].map(|len| secret.name(&long[..len]));
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name));
    }
    let chain = KeyChain::keys(&secret, BlockKey(0), 16, &[0; 16]);
    assert!(!names.contains(&chain[0].as_u128()));
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
