//! The suite for staged tiers on every engine, in one directory and in three.

use std::sync::Arc;

use flexkv_ports::{Memory, StagedTier, conformance};
use flexkv_ssd::{EngineChoice, SsdDir, SsdTier};

use crate::support::{BLOCK, config, engines, get, memory, open, put};

/// A tier and the directory that goes with it.
struct Temporary {
    tier: SsdTier,
    _dir: tempfile::TempDir,
}

fn temporary(engine: EngineChoice, slots: u32, block_bytes: usize) -> Temporary {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), slots, block_bytes);
    config.engine = engine;
    Temporary {
        tier: open(&config),
        _dir: dir,
    }
}

impl StagedTier for Temporary {
    fn shape(&self) -> flexkv_ports::TierShape {
        self.tier.shape()
    }

    fn free_slots(&self) -> usize {
        self.tier.free_slots()
    }

    fn recovered(&self) -> Vec<flexkv_ports::StagedBlock> {
        self.tier.recovered()
    }

    fn lost(&self) -> Vec<(flexkv_block::BlockKey, flexkv_block::Location)> {
        self.tier.lost()
    }

    fn write(
        &self,
        block: flexkv_ports::ReadSlot,
        parent: Option<flexkv_block::BlockKey>,
    ) -> flexkv_ports::BoxFuture<'static, Result<flexkv_block::Location, flexkv_ports::WriteRefusal>>
    {
        self.tier.write(block, parent)
    }

    fn read(
        &self,
        location: flexkv_block::Location,
        key: flexkv_block::BlockKey,
        into: flexkv_ports::WriteSlot,
    ) -> flexkv_ports::BoxFuture<'static, flexkv_ports::StagedRead> {
        self.tier.read(location, key, into)
    }

    fn used(&self, keys: &[flexkv_block::BlockKey]) {
        self.tier.used(keys);
    }

    fn evict(&self, location: flexkv_block::Location) -> flexkv_ports::Eviction {
        self.tier.evict(location)
    }

    fn sync(&self) -> flexkv_ports::BoxFuture<'static, bool> {
        self.tier.sync()
    }
}

#[tokio::test]
async fn every_engine_keeps_the_promises_of_the_trait() {
    for engine in engines() {
        let make =
            |slots, bytes| -> Arc<dyn StagedTier> { Arc::new(temporary(engine, slots, bytes)) };
        conformance::staged(make).await;
    }
}

#[tokio::test]
async fn blocks_are_spread_over_directories_by_their_room() {
    let dirs = tempfile::tempdir().expect("a directory");
    let mut config = config(dirs.path(), 1, BLOCK);
    config.dirs = [12, 12, 24]
        .into_iter()
        .enumerate()
        .map(|(n, slots)| SsdDir {
            path: dirs.path().join(n.to_string()),
            bytes: 4096 + slots * crate::support::STRIDE,
        })
        .collect();
    let tier = open(&config);
    let memory = memory(BLOCK);
    let mut at = Vec::new();
    for n in 0..24 {
        at.push(put(&tier, &memory, n).await.expect("room"));
    }
    let used = |from: u32, to: u32| {
        at.iter()
            .filter(|at| (from..to).contains(&at.slot.0))
            .count()
    };
    assert_eq!((used(0, 12), used(12, 24), used(24, 48)), (6, 6, 12));
    for n in 24..48 {
        at.push(put(&tier, &memory, n).await.expect("room"));
    }
    assert_eq!(tier.free_slots(), 0);
    for (n, at) in (0..).zip(&at) {
        get(&tier, &memory, *at, n).await.expect("it is there");
    }
}

#[tokio::test]
async fn memory_told_of_beforehand_is_written_from_and_read_into() {
    for engine in engines() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = memory(BLOCK);
        let region: Arc<dyn Memory> = {
            use flexkv_ports::BlockTier as _;
            let slot = memory.reserve().expect("a slot");
            slot.bytes().memory().clone()
        };
        let mut config = config(dir.path(), 16, BLOCK);
        config.engine = engine;
        config.memory = vec![region];
        let tier = open(&config);
        for n in 0..16 {
            let at = put(&tier, &memory, n).await.expect("room");
            get(&tier, &memory, at, n).await.expect("it is there");
        }
        assert_eq!(tier.stats().read_blocks, 16);
    }
}
