//! What an SSD tier is told when it is opened.

use std::path::PathBuf;
use std::sync::Arc;

use flexkv_block::NamespaceId;
use flexkv_ports::Memory;

/// A directory of the tier: usually one device each.
#[derive(Clone, Debug)]
pub struct SsdDir {
    /// Where the files lie; made if it is not there.
    pub path: PathBuf,
    /// How many bytes the files may take, headers included.
    pub bytes: u64,
}

/// How transfers reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring if the kernel lets us, otherwise threads.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// Threads that block in `pread` and `pwrite`.
    Threads,
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
            segment_bytes: 1 << 30,
            memory: Vec::new(),
            rng: fastrand::Rng::new(),
        }
    }
}
