//! Namespaces: what must be equal before two engines may share a block.
//!
//! The canonical encoding is a list of (tag, length, bytes) fields in ascending tag order, named
//! under the cluster secret. Two deployments that differ in any field get unrelated roots, so
//! their keys can never match. Knows nothing of configuration files.

use std::fmt;

use thiserror::Error;

use crate::{BlockKey, BlockLayout, ClusterSecret};

/// First bytes of every canonical encoding; raised when the encoding's meaning changes.
const ENCODING: &[u8; 8] = b"fkvns\0\0\x02";

/// Everything about a deployment that decides whether its KV bytes mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Model name or path, as the operators agree to call it.
    pub model: String,
    /// Model revision; empty if the model has none.
    pub revision: String,
    /// Element type of the cache, such as `bfloat16` or `fp8_e4m3`.
    pub dtype: String,
    /// Geometry of one block of one shard.
    pub layout: BlockLayout,
    /// How the engine arranges a block's bytes: engine, version, attention backend, ISA.
    pub engine_layout: String,
    /// Tensor-parallel size.
    pub tensor_parallel: u32,
    /// Pipeline-parallel size.
    pub pipeline_parallel: u32,
}

/// Which part of every block a worker of the deployment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Tensor-parallel rank.
    pub tensor_rank: u32,
    /// Pipeline-parallel stage.
    pub pipeline_stage: u32,
}

/// What separates requests within one deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestScope {
    /// LoRA adapter; empty for the base model.
    pub lora: String,
    /// Tenant's salt; empty for none.
    pub salt: String,
    /// Content hashes of multimodal inputs, in prompt order.
    pub multimodal: Vec<Vec<u8>>,
}

/// 128-bit name of a namespace; public, reveals nothing of the secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(u128);

impl NamespaceId {
    /// The id with the given numeric value.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The numeric value.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for NamespaceId {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NamespaceError::BadId {
                text: text.to_owned(),
            });
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| NamespaceError::BadId {
                text: text.to_owned(),
            })
    }
}

/// What is wrong with a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NamespaceError {
    /// A rank or stage is not below its size.
    #[error("{what} {rank} is not below its size {size}")]
    BadRank {
        /// Which of the two parallel dimensions.
        what: &'static str,
        /// The rank given.
        rank: u32,
        /// The size given.
        size: u32,
    },
    /// A field that must be set is empty.
    #[error("namespace field `{field}` is empty")]
    Empty {
        /// The field's name.
        field: &'static str,
    },
    /// Text that is no namespace id.
    #[error("`{text}` is not a namespace id (32 hexadecimal digits)")]
    BadId {
        /// The text given.
        text: String,
    },
}

impl Namespace {
    /// Checks the fields that have a wrong value.
    pub fn check(&self) -> Result<(), NamespaceError> {
        for (field, value) in [("model", &self.model), ("dtype", &self.dtype)] {
            if value.is_empty() {
                return Err(NamespaceError::Empty { field });
            }
        }
        Ok(())
    }

    /// Checks that the deployment has such a shard.
    pub fn check_shard(&self, shard: Shard) -> Result<(), NamespaceError> {
        for (what, rank, size) in [
            (
                "tensor-parallel rank",
                shard.tensor_rank,
                self.tensor_parallel,
            ),
            (
                "pipeline-parallel stage",
                shard.pipeline_stage,
                self.pipeline_parallel,
            ),
        ] {
            if rank >= size {
                return Err(NamespaceError::BadRank { what, rank, size });
            }
        }
        Ok(())
    }

    /// The canonical encoding: what two deployments must agree on byte by byte.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = ENCODING.to_vec();
        field(&mut out, 1, self.model.as_bytes());
        field(&mut out, 2, self.revision.as_bytes());
        field(&mut out, 3, self.dtype.as_bytes());
        field(&mut out, 4, &self.layout.canonical());
        field(&mut out, 5, self.engine_layout.as_bytes());
        field(&mut out, 6, &self.tensor_parallel.to_le_bytes());
        field(&mut out, 7, &self.pipeline_parallel.to_le_bytes());
        out
    }

    /// The namespace's public name: the code of `id` and the canonical encoding.
    pub fn id(&self, secret: &ClusterSecret) -> NamespaceId {
        NamespaceId(secret.name(&[b"id\0\0", &self.canonical()[..]].concat()))
    }

    /// The key before the first block of a request in `scope`, as `shard` holds it. Shards of one
    /// deployment share a namespace and differ in their keys.
    pub fn root(&self, secret: &ClusterSecret, shard: Shard, scope: &RequestScope) -> BlockKey {
        let mut input = [b"root", &self.canonical()[..]].concat();
        field(&mut input, 14, &shard.tensor_rank.to_le_bytes());
        field(&mut input, 15, &shard.pipeline_stage.to_le_bytes());
        field(&mut input, 16, scope.lora.as_bytes());
        field(&mut input, 17, scope.salt.as_bytes());
        for hash in &scope.multimodal {
            field(&mut input, 18, hash);
        }
        BlockKey::from_u128(secret.name(&input))
    }
}

/// Appends one field: tag u16 LE, length u32 LE, bytes.
fn field(out: &mut Vec<u8>, tag: u16, bytes: &[u8]) {
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
