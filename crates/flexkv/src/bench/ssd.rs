//! The SSD tier on a directory, beside fio on the same file system in the same run.
//!
//! Blocks are written from and read into an arena, at random places, and verified, as always; fio
//! moves as many bytes without looking at them. Then the tier is opened again, with its journal and
//! without. Knows nothing of nodes.

mod fio;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_block::{BlockKey, Checksum, Location, NamespaceId};
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{
    BlockTier as _, Eviction, HeapMemory, MemorySlice, StagedRead, StagedTier as _, WriteRefusal,
    WriteSlot,
};
use flexkv_ssd::{SsdConfig, SsdDir, SsdTier};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::{Better, Row, cpu, median};
use crate::units::show_bytes;

/// Whose blocks are measured with.
const NAMESPACE: NamespaceId = NamespaceId::from_u128(0x55d);
/// Bytes of the blocks that recovery is measured with.
const SMALL: usize = 4096;
/// More memory than caches hold.
const COLD: usize = 256 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// What to measure.
pub struct Plan {
    /// Where files are made, and removed afterwards.
    pub dir: PathBuf,
    /// Sizes of blocks.
    pub sizes: Vec<usize>,
    /// Transfers in flight.
    pub depths: Vec<u32>,
    /// How long each is measured in one round.
    pub time: Duration,
    /// Rounds, in each of which all have their turn.
    pub rounds: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// Blocks of the tier that is opened again.
    pub recovered: u32,
    /// Whether fio has a turn, too.
    pub with_fio: bool,
}

/// What was measured in one turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    gib_per_second: f64,
    cpu_ms_per_gib: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Measures everything in `plan`.
///
/// # Errors
/// If the directory cannot be used or fio does not run.
pub async fn run(plan: &Plan) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new()
        .prefix("flexkv-bench-")
        .tempdir_in(&plan.dir);
    let dir = dir.with_context(|| format!("cannot make files in {}", plan.dir.display()))?;
    let mut rows = Vec::new();
    for size in &plan.sizes {
        for depth in &plan.depths {
            for way in [Way::Write, Way::Read] {
                rows.extend(measure(plan, dir.path(), *size, *depth, way).await?);
            }
        }
    }
    rows.extend(recovery(plan, dir.path()).await?);
    Ok(rows)
}

/// One line of the table: ours and fio in turns.
async fn measure(plan: &Plan, dir: &Path, size: usize, depth: u32, way: Way) -> Result<Vec<Row>> {
    let mut bench = Bench::new(&dir.join("tier"), plan.bytes, size, depth)?;
    bench.fill().await?;
    let hashing = bench.hashing(plan.time / 2)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        ours.push(bench.turn(way, plan.time).await?);
        if plan.with_fio {
            let job = fio::Job {
                file: dir.join("fio"),
                bytes: plan.bytes,
                block: size,
                depth,
                write: way == Way::Write,
                time: plan.time,
            };
            theirs.push(job.run().await?);
        }
    }
    drop(bench);
    std::fs::remove_dir_all(dir.join("tier")).context("cannot remove the files")?;
    let name = format!("{} {}, depth {depth}", way.name(), show_bytes(size as u64));
    Ok(rows(&name, hashing, &ours, &theirs))
}

/// `hashing` is what the checksums cost, which fio has none of, in ms per GiB.
fn rows(name: &str, hashing: f64, ours: &[Turn], theirs: &[Turn]) -> Vec<Row> {
    let rate = |turns: &[Turn]| median(turns.iter().map(|turn| turn.gib_per_second));
    let used = |turns: &[Turn]| median(turns.iter().map(|turn| turn.cpu_ms_per_gib));
    let mut speed = Row::new(name, rate(ours), "GiB/s", Better::Higher);
    let mut cost = Row::new(format!("{name} CPU"), used(ours), "ms/GiB", Better::Lower);
    let hashes = format!("{name} CPU, of that checksums");
    let hashes = Row::new(hashes, hashing, "ms/GiB", Better::Lower);
    if theirs.is_empty() {
        return vec![speed, cost, hashes];
    }
    speed = speed.peer("fio", rate(theirs));
    cost = cost.peer("fio", used(theirs));
    let pairs = || ours.iter().zip(theirs);
    let faster = median(pairs().map(|(a, b)| a.gib_per_second / b.gib_per_second));
    let dearer = median(pairs().map(|(a, b)| (a.cpu_ms_per_gib - hashing) / b.cpu_ms_per_gib));
    let faster = Row::new(format!("{name} of fio"), faster, "", Better::Higher).target(0.9);
    let dearer_name = format!("{name} CPU without checksums of fio");
    let dearer = Row::new(dearer_name, dearer, "", Better::Lower).target(1.5);
    vec![speed, faster, cost, hashes, dearer]
}

/// A block, where it lay in memory, and what became of it.
type Written = (BlockKey, Location, Result<Location, WriteRefusal>);

/// A tier with an arena to move blocks to and from.
struct Bench {
    tier: SsdTier,
    memory: HostTier,
    /// Of all blocks: their keys differ, their bytes do not, so that any slot can be written from.
    sum: Checksum,
    keys: u128,
    /// Blocks in memory that were written, or are about to be let go by the transfer.
    leaving: Vec<Location>,
    /// Blocks on disk.
    held: Vec<(BlockKey, Location)>,
    rng: fastrand::Rng,
    depth: usize,
    size: usize,
}

impl Bench {
    fn new(dir: &Path, bytes: u64, size: usize, depth: u32) -> Result<Self> {
        let mut rng = fastrand::Rng::with_seed(1);
        let arena = HostConfig {
            slots: 2 * depth,
            block_bytes: size,
            namespace: NAMESPACE,
            arena: rng.u64(..),
            huge_pages: true,
            populate: true,
        };
        let memory = HostTier::create(&arena).context("cannot make an arena")?;
        let dirs = vec![SsdDir {
            path: dir.to_owned(),
            bytes,
        }];
        let mut config = SsdConfig::new(dirs, NAMESPACE, size);
        config.depth = depth;
        config.memory = vec![memory.memory()];
        let tier = SsdTier::open(&config)?;
        let mut content = vec![0; size];
        rng.fill(&mut content);
        let slots: Vec<_> = std::iter::from_fn(|| memory.reserve()).collect();
        slots
            .iter()
            .for_each(|slot| slot.bytes().write(0, &content));
        drop(slots);
        Ok(Self {
            tier,
            memory,
            sum: Checksum::of(&content),
            keys: 0,
            leaving: Vec::new(),
            held: Vec::new(),
            rng,
            depth: depth as usize,
            size,
        })
    }

    /// Writes until no slot is free.
    async fn fill(&mut self) -> Result<()> {
        while self.tier.free_slots() > 0 {
            self.write_some(self.tier.free_slots()).await?;
        }
        Ok(())
    }

    /// CPU of hashing blocks that are in no cache, in ms per GiB.
    fn hashing(&self, time: Duration) -> Result<f64> {
        let count = COLD / self.size;
        let memory = Arc::new(HeapMemory::new(count * self.size));
        let blocks: Vec<MemorySlice> = (0..count)
            .filter_map(|n| MemorySlice::new(memory.clone(), n * self.size, self.size))
            .collect();
        let content = vec![1; self.size];
        blocks.iter().for_each(|block| block.write(0, &content));
        let (began, used) = (Instant::now(), cpu(None)?);
        let mut hashed = 0;
        while began.elapsed() < time {
            for block in &blocks {
                std::hint::black_box(block.checksum());
            }
            hashed += blocks.len();
        }
        let used = cpu(None)?.saturating_sub(used);
        Ok(used.as_secs_f64() * 1e3 * GIB / (hashed * self.size) as f64)
    }

    /// Moves blocks for a while.
    async fn turn(&mut self, way: Way, time: Duration) -> Result<Turn> {
        let (began, used) = (Instant::now(), cpu(None)?);
        let mut blocks = 0;
        while began.elapsed() < time {
            blocks += match way {
                Way::Write => self.replace_some().await?,
                Way::Read => self.read_some(8 * self.depth).await?,
            };
        }
        let (took, used) = (began.elapsed(), cpu(None)?.saturating_sub(used));
        let gib = (blocks * self.size) as f64 / GIB;
        Ok(Turn {
            gib_per_second: gib / took.as_secs_f64(),
            cpu_ms_per_gib: used.as_secs_f64() * 1e3 / gib,
        })
    }

    /// Gives blocks up and writes others instead.
    async fn replace_some(&mut self) -> Result<usize> {
        let count = (8 * self.depth).min(self.held.len());
        for _ in 0..count {
            let (_, at) = self.held.swap_remove(self.rng.usize(..self.held.len()));
            self.tier.evict(at);
        }
        self.write_some(count).await
    }

    /// Writes `count` blocks, as many at once as there are lanes.
    async fn write_some(&mut self, count: usize) -> Result<usize> {
        let mut open = FuturesUnordered::new();
        for _ in 0..count {
            if open.len() == self.depth {
                self.note(open.next().await)?;
            }
            let slot = self.slot().await;
            self.keys += 1;
            let key = BlockKey::from_u128(self.keys << 64 | self.keys);
            let from = self.memory.commit(slot, key, self.sum);
            let pin = self.memory.pin(from, key);
            let pin = pin.map_err(|_| anyhow::anyhow!("a block went from memory"))?;
            let writing = self.tier.write(pin, None);
            open.push(async move { (key, from, writing.await) });
        }
        while let Some(written) = open.next().await {
            self.note(Some(written))?;
        }
        Ok(count)
    }

    /// A slot to write from or read into. There are two for each transfer, so one is free soon.
    async fn slot(&mut self) -> WriteSlot {
        loop {
            let memory = &self.memory;
            self.leaving
                .retain(|at| memory.evict(*at) == Eviction::Pinned);
            if let Some(slot) = memory.reserve() {
                return slot;
            }
            tokio::task::yield_now().await;
        }
    }

    fn note(&mut self, written: Option<Written>) -> Result<()> {
        let Some((key, from, outcome)) = written else {
            return Ok(());
        };
        self.leaving.push(from);
        match outcome {
            Ok(at) => self.held.push((key, at)),
            Err(refusal) => bail!("a block was not written: {refusal:?}"),
        }
        Ok(())
    }

    /// Reads `count` blocks drawn at random, as many at once as there are lanes.
    async fn read_some(&mut self, count: usize) -> Result<usize> {
        let mut open = FuturesUnordered::new();
        for _ in 0..count {
            if open.len() == self.depth {
                check(open.next().await)?;
            }
            let (key, at) = self.held[self.rng.usize(..self.held.len())];
            let into = self.slot().await;
            open.push(self.tier.read(at, key, into));
        }
        while let Some(read) = open.next().await {
            check(Some(read))?;
        }
        Ok(count)
    }
}

fn check(read: Option<StagedRead>) -> Result<()> {
    match read.map(|read| read.outcome) {
        Some(Err(refusal)) => bail!("a block was not read: {refusal:?}"),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// A full tier of small blocks, opened again.
async fn recovery(plan: &Plan, dir: &Path) -> Result<Vec<Row>> {
    let dir = dir.join("recovery");
    let slot = 2 * SMALL as u64;
    let bytes = 4096 + u64::from(plan.recovered) * slot;
    let open = || Bench::new(&dir, bytes, SMALL, 32);
    let mut bench = open()?;
    bench.fill().await?;
    drop(bench);
    let timed = || -> Result<f64> {
        let began = Instant::now();
        let bench = open()?;
        let took = began.elapsed().as_secs_f64();
        let found = bench.tier.stats().recovered_blocks;
        if found != u64::from(plan.recovered) {
            bail!("{found} of {} blocks were recovered", plan.recovered);
        }
        Ok(took)
    };
    let with = timed()?;
    let inside = std::fs::read_dir(&dir)?
        .next()
        .context("files were made")??
        .path();
    std::fs::remove_file(inside.join("journal"))?;
    let without = timed()?;
    let name = format!("open with {} blocks", plan.recovered);
    let journal = Row::new(format!("{name}, journal"), with, "s", Better::Lower).target(1.0);
    let frames = bytes as f64 / GIB / without;
    Ok(vec![
        journal,
        Row::new(format!("{name}, no journal"), without, "s", Better::Lower),
        Row::new(
            format!("{name}, no journal: read"),
            frames,
            "GiB/s",
            Better::Higher,
        ),
    ])
}
