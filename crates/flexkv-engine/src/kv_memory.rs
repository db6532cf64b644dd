//! An engine's KV memory, described by data: layers of blocks of opaque bytes at given addresses.
//!
//! All use of raw engine memory is in this file. What the bytes mean, and which blocks the engine
//! reads or writes meanwhile, is not known here.

use std::ptr::with_exposed_provenance_mut;

use flexkv_block::Checksum;
use flexkv_ports::{CacheError, MemorySlice, copy_past_caches};

/// Bytes copied at a time where they are hashed on their way: they stay in the first cache.
const PIECE_BYTES: usize = 16 << 10;

/// Where one layer's part of every block lies. An engine that keeps K and V apart has two a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Address of the first byte of block 0.
    pub base: usize,
    /// From the beginning of one block to that of the next, in bytes.
    pub block_stride: usize,
    /// Bytes of this layer's part of a block, contiguous.
    pub block_bytes: usize,
    /// Number of blocks.
    pub blocks: usize,
}

impl KvLayer {
    /// What is wrong with the description, if anything is.
    fn check(&self) -> Result<(), &'static str> {
        if self.base == 0 {
            return Err("begins at address 0");
        }
        if self.block_bytes == 0 || self.blocks == 0 {
            return Err("has no bytes");
        }
        if self.blocks > 1 && self.block_stride < self.block_bytes {
            return Err("has a stride below the bytes of a block");
        }
        let last = self.block_stride.checked_mul(self.blocks - 1);
        let bytes = last.and_then(|last| last.checked_add(self.block_bytes));
        let end = bytes
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .and_then(|bytes| self.base.checked_add(bytes));
        end.map(drop).ok_or("does not fit the address space")
    }

    /// Byte `at` of block `block`. Both must be within the layer.
    fn address(&self, block: usize, at: usize) -> *mut u8 {
        debug_assert!(block < self.blocks && at < self.block_bytes);
        with_exposed_provenance_mut(self.base + block * self.block_stride + at)
    }
}

/// The KV memory of one worker. In a cache block its layers follow each other without gap.
#[derive(Debug)]
pub struct KvMemory {
    layers: Vec<KvLayer>,
    block_bytes: usize,
    blocks: usize,
}

impl KvMemory {
    /// The memory that `layers` describe.
    ///
    /// # Errors
    /// [`CacheError::Invalid`] names the layer that cannot be as described.
    ///
    /// # Safety
    /// Until the value is dropped, all bytes described must stay readable and writable by any
    /// thread, and must not overlap a node's arena. No block may be written by others while it is
    /// copied from, nor be read or written by others while it is copied to.
    pub unsafe fn new(layers: Vec<KvLayer>) -> Result<Self, CacheError> {
        let invalid = |reason: String| CacheError::Invalid { reason };
        for (at, layer) in layers.iter().enumerate() {
            let checked = layer.check();
            checked.map_err(|what| invalid(format!("layer {at} of the KV memory {what}")))?;
        }
        let blocks = layers.iter().map(|layer| layer.blocks).min();
        let blocks = blocks.ok_or_else(|| invalid("the KV memory has no layers".to_owned()))?;
        let bytes = layers.iter().map(|layer| layer.block_bytes);
        let block_bytes = bytes.reduce(usize::saturating_add).unwrap_or_default();
        Ok(Self {
            layers,
            block_bytes,
            blocks,
        })
    }

    /// Bytes of one block, all layers together.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Number of blocks that every layer has.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The block with the engine's number `id`, which may be anything.
    pub(crate) fn block(&self, id: i64) -> Option<KvBlock<'_>> {
        let index = usize::try_from(id).ok().filter(|at| *at < self.blocks)?;
        Some(KvBlock {
            memory: self,
            index,
        })
    }
}

/// A block that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvBlock<'a> {
    memory: &'a KvMemory,
    /// Below the number of blocks of every layer.
    index: usize,
}

impl KvBlock<'_> {
    /// Fills the block with the bytes of `from`.
    ///
    /// # Panics
    /// If `from` is not as long as a block.
    pub(crate) fn fill(self, from: &MemorySlice) {
        assert_eq!(from.len(), self.memory.block_bytes, "not a block");
        let mut done = 0;
        for layer in &self.memory.layers {
            let part = from.part(done, layer.block_bytes);
            // SAFETY: the source is `block_bytes` mapped bytes of the arena, the destination as
            // many of block `index`, which `KvMemory::block` found to exist; `KvMemory::new` had
            // it promised that they are writable, ours for now, and no part of an arena.
            unsafe {
                let to = layer.address(self.index, 0);
                copy_past_caches(part.as_ptr(), to, layer.block_bytes);
            }
            done += layer.block_bytes;
        }
    }

    /// As [`Self::fill`], and the checksum of what was written.
    pub(crate) fn fill_and_sum(self, from: &MemorySlice) -> Checksum {
        assert_eq!(from.len(), self.memory.block_bytes, "not a block");
        self.pieces(|layer, at, offset, piece| {
            from.read(offset, piece);
            // SAFETY: the source is a private buffer, the destination lies within block `index`
            // of the layer: see `fill`.
            unsafe {
                let to = layer.address(self.index, at);
                copy_past_caches(piece.as_ptr(), to, piece.len());
            }
        })
    }

    /// Copies the block to `to`; the checksum is that of the bytes written there.
    ///
    /// # Panics
    /// If `to` is not as long as a block.
    pub(crate) fn copy_to(self, to: &MemorySlice) -> Checksum {
        assert_eq!(to.len(), self.memory.block_bytes, "not a block");
        self.pieces(|layer, at, offset, piece| {
            // SAFETY: the source lies within block `index` of the layer, which `KvMemory::block`
            // found to exist and `KvMemory::new` had promised to be readable and written by nobody
            // now; the buffer is private. Its bytes then go to `offset` of a mapped slice that is
            // as long as all pieces together.
            unsafe {
                let from = layer.address(self.index, at).cast_const();
                std::ptr::copy_nonoverlapping(from, piece.as_mut_ptr(), piece.len());
                copy_past_caches(piece.as_ptr(), to.as_ptr().add(offset), piece.len());
            }
        })
    }

    /// Calls `each` for every piece of the block with its layer, its place in the layer's part and
    /// in the block, and a buffer to carry it; what the buffers hold afterwards is hashed.
    fn pieces(self, mut each: impl FnMut(&KvLayer, usize, usize, &mut [u8])) -> Checksum {
        let mut buffer = [0; PIECE_BYTES];
        let mut sum = Checksum::stream();
        let mut offset = 0;
        for layer in &self.memory.layers {
            let mut at = 0;
            while at < layer.block_bytes {
                let piece = &mut buffer[..PIECE_BYTES.min(layer.block_bytes - at)];
                each(layer, at, offset, piece);
                sum.update(piece);
                at += piece.len();
                offset += piece.len();
            }
        }
        sum.finish()
    }
}
