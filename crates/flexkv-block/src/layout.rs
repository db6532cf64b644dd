//! Layout arithmetic: how many bytes a block has and where each layer lies in it.
//!
//! A block is "block first": `tokens_per_block` tokens of all layers of one shard, layer after
//! layer, contiguous. Layers may differ in shape. How an engine arranges the bytes inside a layer
//! is its own affair; here they are opaque.

use thiserror::Error;

/// What one layer keeps per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerShape {
    /// Keys and values per head: `2 × kv_heads × head_dim` elements a token.
    KeyValue {
        /// KV heads of this shard.
        kv_heads: u32,
        /// Elements a head.
        head_dim: u32,
        /// Bytes an element.
        element_bytes: u32,
    },
    /// One latent vector instead of K and V (MLA): `dim` elements a token.
    Latent {
        /// Elements a token.
        dim: u32,
        /// Bytes an element.
        element_bytes: u32,
    },
    /// Bytes whose meaning only the engine knows, for a whole block.
    Opaque {
        /// Bytes a block.
        block_bytes: u64,
    },
}

impl LayerShape {
    /// Bytes this layer adds to a block of `tokens` tokens; `None` on overflow.
    pub fn block_bytes(&self, tokens: u32) -> Option<u64> {
        let tokens = u64::from(tokens);
        match *self {
            Self::KeyValue {
                kv_heads,
                head_dim,
                element_bytes,
            } => tokens
                .checked_mul(2)?
                .checked_mul(u64::from(kv_heads))?
                .checked_mul(u64::from(head_dim))?
                .checked_mul(u64::from(element_bytes)),
            Self::Latent { dim, element_bytes } => tokens
                .checked_mul(u64::from(dim))?
                .checked_mul(u64::from(element_bytes)),
            Self::Opaque { block_bytes } => Some(block_bytes),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (tag, words): (u8, [u64; 3]) = match *self {
            Self::KeyValue {
                kv_heads,
                head_dim,
                element_bytes,
            } => (1, [kv_heads.into(), head_dim.into(), element_bytes.into()]),
            Self::Latent { dim, element_bytes } => (2, [dim.into(), element_bytes.into(), 0]),
            Self::Opaque { block_bytes } => (3, [block_bytes, 0, 0]),
        };
        out.push(tag);
        words
            .iter()
            .for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }
}

/// What is wrong with a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// A block must hold at least one token.
    #[error("a block must hold at least one token")]
    NoTokens,
    /// A block must have at least one layer.
    #[error("a block must have at least one layer")]
    NoLayers,
    /// A layer has no bytes.
    #[error("layer {layer} has no bytes")]
    EmptyLayer {
        /// The layer, counted from 0.
        layer: usize,
    },
    /// The block would not fit [`BlockLayout::MAX_BLOCK_BYTES`].
    #[error(
        "a block of this layout exceeds {} bytes",
        BlockLayout::MAX_BLOCK_BYTES
    )]
    TooLarge,
}

/// The geometry of one block of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    tokens_per_block: u32,
    layers: Vec<LayerShape>,
    /// Where each layer begins, and at the end the block's size.
    offsets: Vec<u64>,
}

impl BlockLayout {
    /// No block is larger than this (1 GiB): lengths fit 32 bits on the wire.
    pub const MAX_BLOCK_BYTES: u64 = 1 << 30;

    /// A layout of the given layers.
    pub fn new(tokens_per_block: u32, layers: Vec<LayerShape>) -> Result<Self, LayoutError> {
        if tokens_per_block == 0 {
            return Err(LayoutError::NoTokens);
        }
        if layers.is_empty() {
            return Err(LayoutError::NoLayers);
        }
        let mut offsets = vec![0];
        let mut end = 0u64;
        for (layer, shape) in layers.iter().enumerate() {
            let bytes = shape
                .block_bytes(tokens_per_block)
                .ok_or(LayoutError::TooLarge)?;
            if bytes == 0 {
                return Err(LayoutError::EmptyLayer { layer });
            }
            end = end.checked_add(bytes).ok_or(LayoutError::TooLarge)?;
            if end > Self::MAX_BLOCK_BYTES {
                return Err(LayoutError::TooLarge);
            }
            offsets.push(end);
        }
        Ok(Self {
            tokens_per_block,
            layers,
            offsets,
        })
    }

    /// A layout whose `layers` layers all have the same shape.
    pub fn uniform(
        tokens_per_block: u32,
        layers: usize,
        shape: LayerShape,
    ) -> Result<Self, LayoutError> {
        Self::new(tokens_per_block, vec![shape; layers])
    }

    /// Tokens of one block.
    pub fn tokens_per_block(&self) -> u32 {
        self.tokens_per_block
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.offsets[self.layers.len()] as usize
    }

    /// The byte range of `layer` within a block.
    pub fn layer_range(&self, layer: usize) -> std::ops::Range<usize> {
        self.offsets[layer] as usize..self.offsets[layer + 1] as usize
    }

    /// How many blocks `tokens` tokens fill completely.
    pub fn full_blocks(&self, tokens: usize) -> usize {
        tokens / self.tokens_per_block as usize
    }

    /// The layout's part of a namespace's canonical encoding.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 25 * self.layers.len());
        out.extend_from_slice(&self.tokens_per_block.to_le_bytes());
        out.extend_from_slice(&(self.layers.len() as u32).to_le_bytes());
        self.layers.iter().for_each(|shape| shape.encode(&mut out));
        out
    }
}

#[cfg(test)]
mod tests;
