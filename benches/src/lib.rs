//! What the benches share: prompts, keys and payloads, the same in every run.
//!
//! Knows nothing of what is measured with them.

use flexkv_block::{
    BlockKey, BlockLayout, ClusterSecret, Generation, LayerShape, LayoutError, Location, Namespace,
    RequestScope, Shard, SlotId, Tier, TokenId,
};

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// The cluster's secret.
pub fn secret() -> ClusterSecret {
    ClusterSecret::derive(b"benches")
}

/// The key before the first block.
pub fn root() -> Result<BlockKey, LayoutError> {
    let shape = LayerShape::KeyValue {
        kv_heads: 8,
        head_dim: 128,
        element_bytes: 2,
    };
    let namespace = Namespace {
        model: "bench".to_owned(),
        revision: String::new(),
        dtype: "bfloat16".to_owned(),
        layout: BlockLayout::uniform(BLOCK_TOKENS as u32, 32, shape)?,
        engine_layout: String::new(),
        tensor_parallel: 1,
        pipeline_parallel: 1,
    };
    Ok(namespace.root(&secret(), Shard::default(), &RequestScope::default()))
}

/// Number `i` of the sequence `seed`: well spread, the same in every run (splitmix64).
pub fn number(seed: u64, i: u64) -> u64 {
    let mut x = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `count` tokens of prompt `prompt`.
pub fn tokens(prompt: u64, count: usize) -> Vec<TokenId> {
    (0..count as u64)
        .map(|i| number(prompt, i) as TokenId % 128_000)
        .collect()
}

/// Keys of the first `count` blocks of prompt `prompt`, without hashing tokens.
pub fn keys(prompt: u64, count: usize) -> Vec<BlockKey> {
    (0..count as u64)
        .map(|i| {
            let high = u128::from(number(prompt, 2 * i + 1)) << 64;
            BlockKey::from_u128(high | u128::from(number(prompt, 2 * i)))
        })
        .collect()
}

/// The fingerprints of `keys`.
pub fn fingerprints(keys: &[BlockKey]) -> Vec<u64> {
    keys.iter().map(|key| key.fingerprint()).collect()
}

/// Locations in host memory of `count` blocks that were stored one after the other.
pub fn locations(first: u32, count: usize) -> Vec<Location> {
    (first..)
        .take(count)
        .map(|slot| Location {
            tier: Tier::Host,
            slot: SlotId(slot),
            generation: Generation::FIRST,
        })
        .collect()
}

/// `len` bytes that no two seeds have in common.
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).map(|i| number(seed, i).to_le_bytes());
    words.flatten().take(len).collect()
}

/// Whether times are measured. Otherwise every bench runs once, to see that it does, and set-up
/// should be small. Criterion decides in the same way.
pub fn is_measured() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

#[cfg(test)]
mod tests;
