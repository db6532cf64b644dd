//! What is there after a restart: with the journal, without it, with other settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flexkv_block::{Location, NamespaceId};
use flexkv_ports::{ReadRefusal, StagedTier as _, WriteRefusal};
use flexkv_ssd::{SsdConfig, SsdDir, SsdError, SsdTier};

use crate::support::{BLOCK, STRIDE, config, get, key, memory, open, put};

/// Where recovered blocks lie, by number.
fn found(tier: &SsdTier, numbers: impl Iterator<Item = u64>) -> BTreeMap<u64, Location> {
    let blocks = tier.recovered();
    let by_key: BTreeMap<_, _> = numbers.map(|n| (key(n), n)).collect();
    let mut found = BTreeMap::new();
    for block in blocks {
        let n = by_key[&block.key];
        assert_eq!(block.parent, n.checked_sub(1).map(key), "parent of {n}");
        assert!(
            found.insert(n, block.location).is_none(),
            "{n} is told twice"
        );
    }
    found
}

async fn fill(config: &SsdConfig, numbers: impl Iterator<Item = u64>) {
    let (tier, memory) = (open(config), memory(BLOCK));
    for n in numbers {
        put(&tier, &memory, n).await.expect("room");
    }
}

/// The directory in `dir` that holds the files.
fn inside(dir: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(dir).expect("a directory");
    entries.next().expect("one entry").expect("readable").path()
}

async fn assert_all_there(config: &SsdConfig, numbers: impl Iterator<Item = u64> + Clone) {
    let (tier, memory) = (open(config), memory(BLOCK));
    let found = found(&tier, numbers.clone());
    assert!(
        found.keys().copied().eq(numbers),
        "found {:?}",
        found.keys()
    );
    for (n, at) in found {
        get(&tier, &memory, at, n).await.expect("it is there");
    }
}

#[tokio::test]
async fn a_restart_finds_every_block_and_its_parent() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), 20, BLOCK);
    fill(&config, 0..12).await;
    assert_all_there(&config, 0..12).await;
    assert_all_there(&config, 0..12).await;
    let tier = open(&config);
    assert_eq!((tier.free_slots(), tier.stats().recovered_blocks), (8, 12));
}

#[tokio::test]
async fn a_lost_journal_is_made_again_from_the_frames() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), 20, BLOCK);
    fill(&config, 0..12).await;
    let journal = inside(dir.path()).join("journal");
    std::fs::remove_file(&journal).expect("it was there");
    assert_all_there(&config, 0..12).await;
    std::fs::write(&journal, b"no journal at all").expect("written");
    assert_all_there(&config, 0..12).await;
}

#[tokio::test]
async fn evicted_blocks_stay_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), 4, BLOCK);
    let (tier, memory) = (open(&config), memory(BLOCK));
    let mut at = Vec::new();
    for n in 0..4 {
        at.push(put(&tier, &memory, n).await.expect("room"));
    }
    tier.evict(at[1]);
    tier.evict(at[2]);
    put(&tier, &memory, 5).await.expect("room");
    drop(tier);
    let tier = open(&config);
    let found = found(&tier, 0..6);
    assert!(found.keys().eq(&[0, 3, 5]), "found {:?}", found.keys());
    for (n, at) in found {
        get(&tier, &memory, at, n).await.expect("it is there");
    }
}

#[tokio::test]
async fn other_namespaces_and_sizes_are_set_aside_not_misread() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = config(dir.path(), 8, BLOCK);
    fill(&one, 0..8).await;
    let mut other = one.clone();
    other.namespace = NamespaceId::from_u128(2);
    assert_eq!(open(&other).recovered(), []);
    let mut larger = one.clone();
    larger.block_bytes = 2 * BLOCK;
    larger.dirs[0].bytes *= 2;
    assert_eq!(open(&larger).recovered(), []);
    assert_all_there(&one, 0..8).await;
}

#[tokio::test]
async fn more_space_keeps_all_blocks_and_less_space_keeps_those_that_fit() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), 8, BLOCK);
    config.segment_bytes = 4096 + 4 * STRIDE;
    config.dirs[0].bytes = 3 * config.segment_bytes;
    fill(&config, 0..12).await;
    config.dirs[0].bytes += config.segment_bytes;
    assert_all_there(&config, 0..12).await;
    config.dirs[0].bytes = 2 * config.segment_bytes;
    let (tier, memory) = (open(&config), memory(BLOCK));
    let found = found(&tier, 0..12);
    assert_eq!(found.len(), 8);
    for (n, at) in found {
        get(&tier, &memory, at, n).await.expect("it is there");
    }
    assert_eq!(put(&tier, &memory, 99).await, Err(WriteRefusal::Full));
}

#[tokio::test]
async fn a_directory_that_is_gone_takes_only_its_own_blocks_along() {
    let dirs = tempfile::tempdir().expect("a directory");
    let mut config = config(dirs.path(), 8, BLOCK);
    let bytes = config.dirs[0].bytes;
    config.dirs = ["a", "b"]
        .map(|name| SsdDir {
            path: dirs.path().join(name),
            bytes,
        })
        .to_vec();
    fill(&config, 0..16).await;
    config.dirs.remove(0);
    let (tier, memory) = (open(&config), memory(BLOCK));
    let found = found(&tier, 0..16);
    assert_eq!(found.len(), 8);
    for (n, at) in found {
        get(&tier, &memory, at, n).await.expect("it is there");
    }
}

#[tokio::test]
async fn locations_of_a_former_life_are_stale_or_the_same_block() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), 1, BLOCK);
    let memory = memory(BLOCK);
    let tier = open(&config);
    let old = put(&tier, &memory, 0).await.expect("room");
    drop(tier);
    let tier = open(&config);
    tier.evict(tier.recovered()[0].location);
    put(&tier, &memory, 1).await.expect("room");
    let read = get(&tier, &memory, old, 0).await;
    assert_eq!(read, Err(ReadRefusal::Stale));
}

#[test]
fn settings_that_cannot_work_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = config(dir.path(), 2, BLOCK);
    let refused = |change: &dyn Fn(&mut SsdConfig)| {
        let mut config = good.clone();
        change(&mut config);
        SsdTier::open(&config).err().expect("refused")
    };
    let none = refused(&|config| config.dirs.clear());
    assert!(matches!(none, SsdError::NoDirectory), "{none}");
    let zero = refused(&|config| config.block_bytes = 0).to_string();
    assert!(zero.contains("blocks of 0 bytes"), "{zero}");
    let small = refused(&|config| config.dirs[0].bytes = 5000).to_string();
    assert!(small.contains("5000 bytes hold no block"), "{small}");
    let twice = refused(&|config| config.dirs.push(config.dirs[0].clone()));
    assert!(matches!(twice, SsdError::Twice { .. }), "{twice}");
    let file = dir.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let file = refused(&|config| config.dirs[0].path.clone_from(&file)).to_string();
    assert!(file.contains("file: cannot make the directory"), "{file}");
    let held = open(&good);
    let used = refused(&|_| ()).to_string();
    assert!(used.contains("in use by another process"), "{used}");
    drop(held);
    open(&good);
}

#[tokio::test]
async fn blocks_are_found_in_order_of_use_whatever_slots_they_lie_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), 4, BLOCK);
    config.dirs.push(SsdDir {
        path: dir.path().join("second"),
        ..config.dirs[0].clone()
    });
    let memory = memory(BLOCK);
    let tier = open(&config);
    for n in 0..6 {
        put(&tier, &memory, n).await.expect("written");
    }
    tier.used(&[key(4), key(1)]);
    drop(tier);
    let order = |tier: &SsdTier| -> Vec<_> {
        let found = tier.recovered();
        found.into_iter().map(|block| block.key).collect()
    };
    let tier = open(&config);
    assert_eq!(order(&tier), [0, 2, 3, 5, 4, 1].map(key));
    put(&tier, &memory, 6).await.expect("written");
    tier.used(&[key(2)]);
    drop(tier);
    let tier = open(&config);
    assert_eq!(order(&tier), [0, 3, 5, 4, 1, 6, 2].map(key));
}
