//! What an SSD tier is told when it is opened.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use flexkv_block::NamespaceId;
use flexkv_ports::Memory;

use crate::format::Geometry;

/// Largest size of one file, unless set otherwise.
const SEGMENT_BYTES: u64 = 1 << 30;

/// A directory of the tier: usually one device each.
#[derive(Clone, Debug)]
pub struct SsdDir {
    /// Where the files lie; made if it is not there.
    pub path: PathBuf,
    /// How many bytes the files may take, headers included.
    pub bytes: u64,
}

impl SsdDir {
    /// A directory at `path` with room for `blocks` blocks of `block_bytes` bytes, in files of the
    /// default size.
    pub fn for_blocks(path: PathBuf, blocks: u32, block_bytes: usize) -> Self {
        let any = NamespaceId::from_u128(0);
        let geometry = Geometry::new(any, block_bytes, SEGMENT_BYTES);
        let (full, rest) = (blocks / geometry.per_segment, blocks % geometry.per_segment);
        let full = u64::from(full) * geometry.segment_bytes(geometry.per_segment);
        let rest = if rest > 0 {
            geometry.segment_bytes(rest)
        } else {
            0
        };
        Self {
            path,
            bytes: full + rest,
        }
    }
}

/// How transfers reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring if the kernel lets us, otherwise threads.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// Threads that block in `preadv` and `pwritev`.
    Threads,
    /// io_uring by way of the crate `rio`, or nothing.
    #[cfg(feature = "rio")]
    Rio,
}

/// Engines and what they are called.
const ENGINES: &[(EngineChoice, &str)] = &[
    (EngineChoice::Auto, "auto"),
    (EngineChoice::IoUring, "io-uring"),
    (EngineChoice::Threads, "threads"),
    #[cfg(feature = "rio")]
    (EngineChoice::Rio, "rio"),
];

fn known() -> String {
    let names: Vec<_> = ENGINES
        .iter()
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    match names.split_last() {
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = ENGINES.iter().find(|(_, name)| *name == text);
        named
            .map(|(engine, _)| *engine)
            .ok_or_else(|| format!("`{text}` is no engine: write {}", known()))
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = ENGINES.iter().find(|(engine, _)| engine == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

/// Settings of an SSD tier.
#[derive(Clone)]
pub struct SsdConfig {
    /// Directories that blocks are spread over; at least one.
    pub dirs: Vec<SsdDir>,
    /// Whose blocks these are. Those of another namespace, or of another size, are left alone.
    pub namespace: NamespaceId,
    /// Bytes of one block.
    pub block_bytes: usize,
    /// How transfers reach the kernel.
    pub engine: EngineChoice,
    /// Transfers in flight at one directory.
    pub depth: u32,
    /// Largest size of one file in bytes.
    pub segment_bytes: u64,
    /// Memory that blocks are read into and written from; io_uring is told of it once instead of at
    /// every transfer. May be empty.
    pub memory: Vec<Arc<dyn Memory>>,
    /// Source of the number that tells a new directory from what lay there before.
    pub rng: fastrand::Rng,
}

impl SsdConfig {
    /// Defaults for blocks of `block_bytes` bytes of `namespace` in `dirs`.
    pub fn new(dirs: Vec<SsdDir>, namespace: NamespaceId, block_bytes: usize) -> Self {
        Self {
            dirs,
            namespace,
            block_bytes,
            engine: EngineChoice::Auto,
            depth: 32,
            segment_bytes: SEGMENT_BYTES,
            memory: Vec::new(),
            rng: fastrand::Rng::new(),
        }
    }
}
