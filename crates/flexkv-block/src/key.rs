//! Block keys: a keyed 128-bit code of a whole prefix, so that one key names all of it.
//!
//! The key of block `i` is the code (see `mac`) of the chain's root, the number of tokens of a block
//! and all tokens up to the end of block `i`. Tokens are laid out as u32 LE, four a chunk; a block
//! that does not fill its last chunk ends it with zeros. Positions of chunks:
//!
//! | position | chunk |
//! |---|---|
//! | 1 | the root; zeros for a name |
//! | 2 | u64 LE: tokens of a block, or bytes of a name; u32 LE: 1 for a chain, 2 for a name; 4 zeros |
//! | 256 + `i`·`s` + `j` | chunk `j` of block `i`; `s` is the least power of two that is no less than the chunks of a block |
//!
//! Knows nothing of who holds a block.

use std::fmt;
use std::sync::Arc;

use crate::mac::{self, Chunk, Scratch, WINDOW};

/// A token as the engine's tokenizer numbers it.
pub type TokenId = u32;

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
    keys: Arc<mac::Keys>,
}

/// What a code is of.
#[derive(Clone, Copy)]
enum Kind {
    Chain = 1,
    Name = 2,
}

/// The position of the first chunk of what a code is of.
const FIRST: u64 = WINDOW as u64;
/// Tokens of a chunk.
const CHUNK_TOKENS: usize = 4;

impl ClusterSecret {
    /// Derives the cluster's keys from bytes of any length.
    pub fn derive(bytes: &[u8]) -> Self {
        Self {
            keys: Arc::new(mac::Keys::derive(bytes)),
        }
    }

    /// The sum that the code of anything of this kind begins with.
    fn begin(&self, root: u128, kind: Kind, len: usize, scratch: &mut Scratch) -> u128 {
        let head = (kind as u128) << 64 | len as u128;
        let mut sum = 0;
        let chunks = [mac::chunk(root), mac::chunk(head)];
        self.keys.add(&mut sum, 1, &chunks, scratch);
        sum
    }

    /// The code of a name: any bytes.
    pub(crate) fn name(&self, bytes: &[u8]) -> u128 {
        let scratch = &mut Scratch::new();
        let mut sum = self.begin(0, Kind::Name, bytes.len(), scratch);
        let chunks = bytes.chunks(size_of::<Chunk>()).map(|bytes| {
            let mut padded = [0; 16];
            padded[..bytes.len()].copy_from_slice(bytes);
            mac::chunk(u128::from_le_bytes(padded))
        });
        let chunks: Vec<Chunk> = chunks.collect();
        for (window, chunks) in (1u64..).zip(chunks.chunks(WINDOW)) {
            let position = window * FIRST;
            self.keys.add(&mut sum, position, chunks, scratch);
        }
        self.keys.code(sum)
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

/// Computes the keys of a prompt, block by block; appending tokens never rehashes the prefix.
#[derive(Clone)]
pub struct KeyChain {
    secret: ClusterSecret,
    tip: BlockKey,
    tokens_per_block: usize,
    /// The sum after the last complete block.
    sum: u128,
    /// The position of the next block's first chunk.
    position: u64,
    /// The tokens of the block that is not complete yet.
    pending: Vec<TokenId>,
    scratch: Box<Scratch>,
}

impl fmt::Debug for KeyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChain")
            .field("tip", &self.tip)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

impl KeyChain {
    /// A chain that starts at `root`, the key before the first block (see [`crate::Namespace::root`]).
    ///
    /// # Panics
    /// If `tokens_per_block` is 0.
    pub fn new(secret: &ClusterSecret, root: BlockKey, tokens_per_block: usize) -> Self {
        assert!(tokens_per_block > 0, "a block holds at least one token");
        let mut scratch = Scratch::new();
        Self {
            sum: secret.begin(root.0, Kind::Chain, tokens_per_block, &mut scratch),
            secret: secret.clone(),
            tip: root,
            tokens_per_block,
            position: FIRST,
            pending: Vec::new(),
            scratch,
        }
    }

    /// Appends tokens and pushes the key of every block that they complete.
    pub fn extend(&mut self, tokens: &[TokenId], keys: &mut Vec<BlockKey>) {
        let per_block = self.tokens_per_block;
        keys.reserve((self.pending.len() + tokens.len()) / per_block);
        let mut rest = tokens;
        if !self.pending.is_empty() {
            let missing = per_block - self.pending.len();
            let (now, later) = rest.split_at(missing.min(rest.len()));
            rest = later;
            self.pending.extend_from_slice(now);
            if self.pending.len() < per_block {
                return;
            }
            let block = std::mem::take(&mut self.pending);
            self.add_blocks(&block, keys);
        }
        let (blocks, begun) = rest.split_at(rest.len() - rest.len() % per_block);
        self.add_blocks(blocks, keys);
        self.pending.extend_from_slice(begun);
    }

    /// Adds complete blocks.
    fn add_blocks(&mut self, tokens: &[TokenId], keys: &mut Vec<BlockKey>) {
        let chunks = self.tokens_per_block.div_ceil(CHUNK_TOKENS);
        let stride = chunks.next_power_of_two();
        if self.tokens_per_block == stride * CHUNK_TOKENS && stride <= WINDOW {
            // Blocks follow each other without a gap, so a whole window is added at once.
            let mut rest = tokens.as_chunks().0;
            while !rest.is_empty() {
                let room = WINDOW - self.position as usize % WINDOW;
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.end_blocks(now, stride, keys);
                self.position += now.len() as u64;
                rest = later;
            }
            return;
        }
        let mut block = vec![[0; CHUNK_TOKENS]; chunks];
        for tokens in tokens.chunks_exact(self.tokens_per_block) {
            block.as_flattened_mut()[..tokens.len()].copy_from_slice(tokens);
            let next = self.position + stride as u64;
            let (windows, end) = block.split_at((chunks - 1) / WINDOW * WINDOW);
            for part in windows.chunks(WINDOW) {
                let scratch = &mut self.scratch;
                let secret = &self.secret.keys;
                secret.add(&mut self.sum, self.position, part, scratch);
                self.position += WINDOW as u64;
            }
            self.end_blocks(end, end.len(), keys);
            self.position = next;
        }
    }

    /// Adds chunks of one window, each `part` of which ends a block, and pushes the blocks' keys.
    #[inline]
    fn end_blocks(&mut self, chunks: &[Chunk], part: usize, keys: &mut Vec<BlockKey>) {
        let (sum, scratch) = (&mut self.sum, &mut self.scratch);
        let secret = &self.secret.keys;
        let codes = secret.codes(sum, self.position, chunks, part, scratch);
        keys.extend(codes.map(BlockKey));
        self.tip = keys.last().copied().unwrap_or(self.tip);
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
