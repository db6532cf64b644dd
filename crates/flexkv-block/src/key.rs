//! Block keys: a keyed, chained 128-bit hash, so that one key names a whole prefix.
//!
//! `key[i] = XXH3-128(secret; key[i-1] ‖ tokens of block i as u32 LE)`, `key[-1]` being the root of
//! the namespace. XXH3 as specified by the xxHash project (github.com/Cyan4973/xxHash), with a
//! 192-byte secret derived from the cluster's secret. Knows nothing of who holds a block.

use std::fmt;

use twox_hash::XxHash3_128;

/// A token as the engine's tokenizer numbers it.
pub type TokenId = u32;

/// Bytes of XXH3's secret; the algorithm's default size.
const XXH3_SECRET_BYTES: usize = 192;

/// Names one block and, through the chain, every token before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(u128);

impl BlockKey {
    /// Bytes of a key on the wire.
    pub const BYTES: usize = 16;

    /// The key whose little-endian bytes are `bytes`.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// The key as 16 little-endian bytes.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_le_bytes()
    }

    /// The key with the given numeric value.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The numeric value.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The low 64 bits: what the index stores. A match on it is a hint; the data path compares the
    /// whole key.
    pub const fn fingerprint(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The secret all nodes and engines of a cluster share. Without it nobody can compute, and so
/// nobody can forge, a key of the cluster.
#[derive(Clone)]
pub struct ClusterSecret {
    xxh3: Box<[u8; XXH3_SECRET_BYTES]>,
}

impl ClusterSecret {
    /// Derives XXH3's secret from bytes of any length: word `i` of the 24 is
    /// `XXH3-64(seed = i, bytes)`, so that every input bit reaches every word.
    pub fn derive(bytes: &[u8]) -> Self {
        let mut xxh3 = Box::new([0u8; XXH3_SECRET_BYTES]);
        for (i, word) in xxh3.chunks_exact_mut(8).enumerate() {
            let value = twox_hash::XxHash3_64::oneshot_with_seed(i as u64, bytes);
            word.copy_from_slice(&value.to_le_bytes());
        }
        Self { xxh3 }
    }

    /// XXH3-128 of `input` under this secret.
    pub(crate) fn hash(&self, input: &[u8]) -> u128 {
        XxHash3_128::oneshot_with_secret(&self.xxh3[..], input)
            .unwrap_or_else(|_| unreachable!("192 bytes are over XXH3's minimum of 136"))
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

/// Computes the keys of a prompt, block by block; appending tokens never rehashes the prefix.
#[derive(Clone, Debug)]
pub struct KeyChain {
    secret: ClusterSecret,
    tip: BlockKey,
    /// `tip ‖ tokens of the block being filled`, as long as a full block's input.
    input: Box<[u8]>,
    /// How many of the tokens in `input` are set.
    tokens: usize,
}

impl KeyChain {
    /// A chain that starts at `root`, the key before the first block (see [`crate::Namespace::root`]).
    ///
    /// # Panics
    /// If `tokens_per_block` is 0.
    pub fn new(secret: &ClusterSecret, root: BlockKey, tokens_per_block: usize) -> Self {
        assert!(tokens_per_block > 0, "a block holds at least one token");
        let mut input = vec![0; BlockKey::BYTES + 4 * tokens_per_block].into_boxed_slice();
        input[..BlockKey::BYTES].copy_from_slice(&root.to_bytes());
        Self {
            secret: secret.clone(),
            tip: root,
            input,
            tokens: 0,
        }
    }

    /// Appends tokens and pushes the key of every block that they complete.
    pub fn extend(&mut self, tokens: &[TokenId], keys: &mut Vec<BlockKey>) {
        let per_block = (self.input.len() - BlockKey::BYTES) / 4;
        keys.reserve((self.tokens + tokens.len()) / per_block);
        let mut rest = tokens;
        while !rest.is_empty() {
            let (now, later) = rest.split_at((per_block - self.tokens).min(rest.len()));
            rest = later;
            let free = &mut self.input[BlockKey::BYTES + 4 * self.tokens..];
            for (bytes, token) in free.chunks_exact_mut(4).zip(now) {
                bytes.copy_from_slice(&token.to_le_bytes());
            }
            self.tokens += now.len();
            if self.tokens == per_block {
                self.tip = BlockKey::from_u128(self.secret.hash(&self.input));
                self.input[..BlockKey::BYTES].copy_from_slice(&self.tip.to_bytes());
                self.tokens = 0;
                keys.push(self.tip);
            }
        }
    }

    /// The key of the last complete block, or the root if none is complete.
    pub fn tip(&self) -> BlockKey {
        self.tip
    }

    /// The keys of all complete blocks of `tokens` under `root`.
    pub fn keys(
        secret: &ClusterSecret,
        root: BlockKey,
        tokens_per_block: usize,
        tokens: &[TokenId],
    ) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        Self::new(secret, root, tokens_per_block).extend(tokens, &mut keys);
        keys
    }
}

#[cfg(test)]
mod tests;
