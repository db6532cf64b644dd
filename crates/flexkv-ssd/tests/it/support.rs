//! Blocks with contents that can be told apart, and tiers to put them in.

use std::path::Path;
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Location, NamespaceId, Tier};
use flexkv_ports::{BlockTier, HeapTier, ReadRefusal, StagedTier, TierShape, WriteRefusal};
use flexkv_ssd::{EngineChoice, SsdConfig, SsdDir, SsdTier};

pub(crate) const BLOCK: usize = 8192;
/// Bytes of a slot on disk.
pub(crate) const STRIDE: u64 = 4096 + BLOCK as u64;

/// A configuration with room for `slots` blocks in one directory.
pub(crate) fn config(dir: &Path, slots: u32, block_bytes: usize) -> SsdConfig {
    let stride = 4096 + block_bytes.next_multiple_of(4096) as u64;
    let dir = SsdDir {
        path: dir.to_owned(),
        bytes: 4096 + u64::from(slots) * stride,
    };
    SsdConfig::new(vec![dir], NamespaceId::from_u128(1), block_bytes)
}

pub(crate) fn open(config: &SsdConfig) -> SsdTier {
    SsdTier::open(config).unwrap_or_else(|error| panic!("{error}"))
}

/// All engines that can be chosen and work here.
pub(crate) fn engines() -> Vec<EngineChoice> {
    let all = [
        EngineChoice::IoUring,
        EngineChoice::Threads,
        #[cfg(feature = "rio")]
        EngineChoice::Rio,
    ];
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), 1, BLOCK);
    config.engine = EngineChoice::IoUring;
    let uring = SsdTier::open(&config).is_ok();
    all.into_iter()
        .filter(|engine| uring || *engine == EngineChoice::Threads)
        .collect()
}

/// Host memory to write from and to read into.
pub(crate) fn memory(block_bytes: usize) -> Arc<HeapTier> {
    Arc::new(HeapTier::new(TierShape {
        tier: Tier::Host,
        slots: 64,
        block_bytes,
    }))
}

pub(crate) fn key(n: u64) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

pub(crate) fn content(n: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(n).fill(&mut bytes);
    bytes
}

/// Writes block `n`, whose parent is block `n - 1`.
pub(crate) async fn put(
    tier: &SsdTier,
    memory: &HeapTier,
    n: u64,
) -> Result<Location, WriteRefusal> {
    let slot = memory.reserve().expect("memory to write from");
    let bytes = content(n, memory.shape().block_bytes);
    slot.bytes().write(0, &bytes);
    let at = memory.commit(slot, key(n), Checksum::of(&bytes));
    let pin = memory.pin(at, key(n)).expect("just committed");
    let outcome = tier.write(pin, n.checked_sub(1).map(key)).await;
    memory.evict(at);
    outcome
}

/// Reads block `n`; if that succeeds, the bytes must be right.
pub(crate) async fn get(
    tier: &SsdTier,
    memory: &HeapTier,
    at: Location,
    n: u64,
) -> Result<(), ReadRefusal> {
    let into = memory.reserve().expect("memory to read into");
    let read = tier.read(at, key(n), into).await;
    read.outcome?;
    let right = read.into.bytes().to_vec() == content(n, memory.shape().block_bytes);
    assert!(right, "block {n} came back with other bytes");
    Ok(())
}
