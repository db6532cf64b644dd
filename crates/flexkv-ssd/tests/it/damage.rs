//! Files that were changed behind the tier's back: no wrong byte is ever returned, and what was not
//! touched is still there.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flexkv_ports::{ReadRefusal, StagedTier as _, WriteRefusal};

use crate::support::{BLOCK, STRIDE, config, engines, get, key, memory, open, put};

const SLOTS: u64 = 8;
/// Set to have more of them.
const CORRUPTIONS: &str = "FLEXKV_SSD_CORRUPTIONS";

fn files(dir: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(dir).expect("a directory").next();
    let inside = inside.expect("one entry").expect("readable").path();
    let mut files: Vec<_> = std::fs::read_dir(inside)
        .expect("a directory")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| !path.ends_with("lock"))
        .collect();
    files.sort();
    files
}

fn is_segment(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("segment-")
}

#[tokio::test]
async fn a_flipped_bit_under_a_running_tier_is_noticed_and_the_block_dropped() {
    for engine in engines() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config(dir.path(), SLOTS as u32, BLOCK);
        config.engine = engine;
        let (tier, memory) = (open(&config), memory(BLOCK));
        let at = put(&tier, &memory, 1).await.expect("room");
        let other = put(&tier, &memory, 2).await.expect("room");
        let segment = files(dir.path()).into_iter().find(|it| is_segment(it));
        let segment = segment.expect("a segment");
        let file = OpenOptions::new()
            .write(true)
            .open(segment)
            .expect("a file");
        let byte = 4096 + u64::from(at.slot.0) * STRIDE + 4096 + 100;
        file.write_all_at(b"x", byte).expect("changed");
        file.sync_all().expect("past the page cache");
        let read = get(&tier, &memory, at, 1).await;
        assert_eq!(read, Err(ReadRefusal::Corrupt));
        let read = get(&tier, &memory, at, 1).await;
        assert_eq!(read, Err(ReadRefusal::Stale), "it is dropped");
        get(&tier, &memory, other, 2).await.expect("not touched");
        assert_eq!(tier.stats().corrupt_blocks, 1);
        put(&tier, &memory, 3).await.expect("its slot is free");
        drop(tier);
        let keys: Vec<_> = open(&config).recovered().iter().map(|b| b.key).collect();
        assert!(!keys.contains(&key(1)), "dropped for good");
    }
}

#[tokio::test]
async fn a_file_cut_off_under_a_running_tier_costs_its_blocks_only() {
    let dirs = tempfile::tempdir().expect("a directory");
    let mut config = config(dirs.path(), SLOTS as u32, BLOCK);
    config.segment_bytes = 4096 + 4 * STRIDE;
    config.dirs[0].bytes = 2 * config.segment_bytes;
    let (tier, memory) = (open(&config), memory(BLOCK));
    let mut at = Vec::new();
    for n in 0..SLOTS {
        at.push(put(&tier, &memory, n).await.expect("room"));
    }
    let segment = files(dirs.path())
        .into_iter()
        .filter(|it| is_segment(it))
        .nth(1);
    let segment = segment.expect("a second segment");
    let file = OpenOptions::new()
        .write(true)
        .open(segment)
        .expect("a file");
    file.set_len(4096 + STRIDE).expect("cut off");
    for (n, at) in (0..).zip(&at) {
        let expected = if at.slot.0 < 5 {
            Ok(())
        } else {
            Err(ReadRefusal::Failed)
        };
        assert_eq!(
            get(&tier, &memory, *at, n).await,
            expected,
            "slot {}",
            at.slot.0
        );
    }
    assert_eq!(tier.stats().io_errors, 3);
    assert_eq!(
        tier.shape().slots,
        5,
        "slots that failed are not used again"
    );
    assert_eq!(put(&tier, &memory, 99).await, Err(WriteRefusal::Full));
}

/// What is done to a file.
fn damage(rng: &mut fastrand::Rng, path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a file");
    let len = file.metadata().expect("a file").len();
    if len == 0 {
        return;
    }
    let at = rng.u64(..len);
    match rng.u32(..4) {
        0 => file.set_len(at).expect("cut off"),
        1 => {
            let junk: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(700).collect();
            file.write_all_at(&junk, at).expect("overwritten");
        }
        2 => {
            let zeros = vec![0; rng.usize(1..5000)];
            file.write_all_at(&zeros, at).expect("overwritten");
        }
        _ => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("inside");
            byte[0] ^= 1 << rng.u32(..8);
            file.write_all_at(&byte, at).expect("flipped");
        }
    }
    file.sync_all().expect("past the page cache");
}

#[tokio::test]
async fn random_damage_never_yields_a_wrong_block() {
    let wanted = std::env::var(CORRUPTIONS).map_or(80, |n| n.parse().expect(CORRUPTIONS));
    let (mut damages, mut lost) = (0, 0);
    let mut rng = fastrand::Rng::with_seed(42);
    while damages < wanted {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config(dir.path(), SLOTS as u32, BLOCK);
        config.segment_bytes = 4096 + 3 * STRIDE;
        config.dirs[0].bytes = 2 * config.segment_bytes + 4096 + 2 * STRIDE;
        let memory = memory(BLOCK);
        let tier = open(&config);
        for n in 0..SLOTS {
            put(&tier, &memory, n).await.expect("room");
        }
        drop(tier);
        for _ in 0..8 {
            let files = files(dir.path());
            let file = &files[rng.usize(..files.len())];
            damage(&mut rng, file);
            damages += 1;
            let tier = open(&config);
            let mut there = 0;
            for block in tier.recovered() {
                let n = (0..SLOTS).find(|n| key(*n) == block.key);
                let n = n.expect("no block was made up");
                there += u64::from(get(&tier, &memory, block.location, n).await.is_ok());
            }
            lost += SLOTS - there;
            drop(tier);
        }
    }
    assert!(lost > 0, "no damage was ever noticed, so none was done");
}
