//! What a block is: its key, the namespace it lives in, where its bytes lie and how it is framed.
//!
//! A cache block holds the KV of `tokens_per_block` consecutive tokens of one prompt, all layers of
//! one shard. Every other crate of the workspace speaks in these types.
//!
//! This crate does no I/O, reads no clock and knows nothing of nodes, indexes or transports.

mod arena;
mod frame;
mod key;
mod layout;
mod location;
mod mac;
mod namespace;

pub use arena::{ARENA_HEADER_BYTES, ArenaError, ArenaLayout, DESCRIPTOR_BYTES, Descriptor};
pub use frame::{
    Checksum, ChecksumStream, FRAME_HEADER_BYTES, FRAME_MAGIC, FRAME_VERSION, FrameError,
    FrameHeader,
};
pub use key::{BlockKey, ClusterSecret, KeyChain, TokenId};
pub use layout::{BlockLayout, LayerShape, LayoutError};
pub use location::{Generation, Location, SlotId, Tier};
pub use namespace::{Namespace, NamespaceError, NamespaceId, RequestScope, Shard};
