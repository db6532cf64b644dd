//! The SSD tier on a directory, beside fio on the same file system in the same run.
//!
//! Blocks are written from and read into an arena, at random places, and what is read is verified, as
//! always; fio moves as many bytes without looking at them, and reads once more looking at them. As
//! many transfers are in flight at the device as fio has, and as many again wait, as loads of several
//! prompts do. Then a tier is opened again. Knows nothing of nodes.

mod fio;
mod recovery;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_block::{BlockKey, Checksum, Location, NamespaceId};
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{BlockTier as _, BoxFuture, Eviction, MemorySlice, StagedTier as _, WriteSlot};
use flexkv_ssd::{EngineChoice, SsdConfig, SsdDir, SsdTier};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::{Better, Row, cpu, median};
use crate::units::show_bytes;

/// Whose blocks are measured with.
const NAMESPACE: NamespaceId = NamespaceId::from_u128(0x55d);
/// Bytes that are looked at to see what that costs.
const LOOKED_AT: usize = 128 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// What to measure.
pub struct Plan {
    /// Where files are made, and removed afterwards.
    pub dir: PathBuf,
    /// How transfers reach the kernel: each has its turns.
    pub engines: Vec<EngineChoice>,
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
    /// Whether blocks lie on huge pages, where the system has them.
    pub huge_pages: bool,
    /// Whether fio has a turn, too.
    pub with_fio: Option<FioMemory>,
}

/// What fio's buffers lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FioMemory {
    /// Ordinary pages, as fio has by itself.
    Ordinary,
    /// Huge pages, which must have been reserved.
    Huge,
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
            rows.extend(measure(plan, dir.path(), *size, *depth).await?);
        }
        for engine in &plan.engines {
            let files = tier_dir(dir.path(), *engine);
            std::fs::remove_dir_all(files).context("cannot remove the files")?;
        }
    }
    if plan.recovered > 0 {
        rows.extend(recovery::measure(plan, &dir.path().join("recovery")).await?);
    }
    Ok(rows)
}

/// Where an engine's files lie. They stay for the next depth.
fn tier_dir(dir: &Path, engine: EngineChoice) -> PathBuf {
    dir.join(engine.to_string())
}

/// All engines and fio in turns, writing and reading.
async fn measure(plan: &Plan, dir: &Path, size: usize, depth: u32) -> Result<Vec<Row>> {
    let mut engines = Vec::new();
    for engine in &plan.engines {
        let dirs = vec![SsdDir {
            path: tier_dir(dir, *engine),
            bytes: plan.bytes,
        }];
        let mut config = SsdConfig::new(dirs, NAMESPACE, size);
        config.engine = *engine;
        config.depth = depth;
        let mut bench = Bench::new(&config, plan.huge_pages)?;
        bench.fill().await?;
        engines.push((*engine, bench));
    }
    let mut rows = Vec::new();
    for way in [Way::Write, Way::Read] {
        let mut ours = vec![Vec::new(); engines.len()];
        let (mut theirs, mut verifying, mut looks) = (Vec::new(), Vec::new(), Vec::new());
        let job = |memory, verify| fio::Job {
            dir: dir.to_owned(),
            bytes: plan.bytes,
            block: size,
            depth,
            write: way == Way::Write,
            time: plan.time,
            memory,
            verify,
        };
        if let (Some(memory), Way::Read) = (plan.with_fio, way) {
            job(memory, true).prepare().await?;
        }
        for _ in 0..plan.rounds {
            for ((_, bench), turns) in engines.iter_mut().zip(&mut ours) {
                turns.push(bench.turn(way, plan.time).await?);
            }
            if let Some(memory) = plan.with_fio {
                theirs.push(job(memory, false).run().await?);
                if way == Way::Read {
                    verifying.push(job(memory, true).run().await?);
                }
            }
            if let (Some((_, bench)), Way::Read) = (engines.first(), way) {
                looks.push(bench.cost_of_looking()?);
            }
        }
        for ((engine, _), turns) in engines.iter().zip(&ours) {
            let size = show_bytes(size as u64);
            let name = format!("{engine}: {} {size}, depth {depth}", way.name());
            rows.extend(rows_of(&name, turns, &theirs));
            if way == Way::Read {
                rows.extend(rows_of_looking(&name, turns, &theirs, &verifying, &looks));
            }
        }
    }
    Ok(rows)
}

/// What a turn has of something.
type Of = fn(&Turn) -> f64;
const SPEED: Of = |turn| turn.gib_per_second;
const CPU: Of = |turn| turn.cpu_ms_per_gib;

fn middle(turns: &[Turn], of: Of) -> f64 {
    median(turns.iter().map(of))
}

/// The middle one of the ratios of all rounds.
fn ratio(ours: &[Turn], theirs: &[Turn], of: Of) -> f64 {
    let pairs = ours.iter().zip(theirs);
    median(pairs.map(|(ours, theirs)| of(ours) / of(theirs)))
}

fn rows_of(name: &str, ours: &[Turn], theirs: &[Turn]) -> Vec<Row> {
    let speed = Row::new(name, middle(ours, SPEED), "GiB/s", Better::Higher);
    let cost = Row::new(
        format!("{name} CPU"),
        middle(ours, CPU),
        "ms/GiB",
        Better::Lower,
    );
    if theirs.is_empty() {
        return vec![speed, cost];
    }
    let of_fio = |what: &str, of, better| {
        Row::new(
            format!("{name}{what} of fio"),
            ratio(ours, theirs, of),
            "",
            better,
        )
    };
    vec![
        speed.peer("fio", middle(theirs, SPEED)),
        of_fio("", SPEED, Better::Higher).target(0.9),
        cost.peer("fio", middle(theirs, CPU)),
        of_fio(" CPU", CPU, Better::Lower).target(1.5),
    ]
}

/// What it takes to look at the bytes that were read, which fio by itself does not.
fn rows_of_looking(
    name: &str,
    ours: &[Turn],
    theirs: &[Turn],
    verifying: &[Turn],
    looks: &[Looks],
) -> Vec<Row> {
    let hashing = median(looks.iter().map(|it| it.hashing));
    let loading = median(looks.iter().map(|it| it.loading));
    let what = format!("{name} CPU, of that checksums");
    let mut rows =
        vec![Row::new(what, hashing, "ms/GiB", Better::Lower).peer("loads alone", loading)];
    if theirs.is_empty() {
        return rows;
    }
    let pairs = ours.iter().zip(theirs);
    let moving = pairs.map(|(ours, theirs)| (CPU(ours) - hashing) / CPU(theirs));
    let what = format!("{name} CPU of fio, without checksums");
    rows.push(Row::new(what, median(moving), "", Better::Lower));
    for (what, of, better) in [("", SPEED, Better::Higher), (" CPU", CPU, Better::Lower)] {
        let what = format!("{name}{what} of fio that verifies");
        let row = Row::new(what, ratio(ours, verifying, of), "", better);
        rows.push(row.peer("fio", middle(verifying, of)));
    }
    rows
}

/// CPU of looking at bytes, in ms per GiB.
struct Looks {
    /// Of their checksums.
    hashing: f64,
    /// Of loading them and no more: what the cheapest look costs.
    loading: f64,
}

/// A block that was moved, and what is left to do for it.
enum Moved {
    Read(Result<(), String>),
    /// Where it lay in memory, and now on disk.
    Written(BlockKey, Location, Result<Location, String>),
}

/// CPU of looking at all these again and again, in ms per GiB.
fn cost_of(slots: &[WriteSlot], look: impl Fn(&MemorySlice)) -> Result<f64> {
    let used = cpu(None)?;
    let mut bytes = 0;
    while bytes < LOOKED_AT {
        for slot in slots {
            look(slot.bytes());
            bytes += slot.bytes().len();
        }
    }
    let used = cpu(None)?.saturating_sub(used);
    Ok(used.as_secs_f64() * 1e3 * GIB / bytes as f64)
}

fn hash(bytes: &MemorySlice) {
    std::hint::black_box(bytes.checksum());
}

/// Loads all bytes into a place that stays in the first cache.
fn load(bytes: &MemorySlice) {
    let mut piece = [0; 4096];
    for at in (0..bytes.len()).step_by(piece.len()) {
        let len = piece.len().min(bytes.len() - at);
        bytes.read(at, &mut piece[..len]);
        std::hint::black_box(&piece);
    }
}

/// A tier with an arena to move blocks to and from.
struct Bench {
    tier: SsdTier,
    memory: HostTier,
    /// Of all blocks: their keys differ, their bytes do not, so that any slot can be written from.
    sum: Checksum,
    keys: u128,
    /// Blocks on disk.
    held: Vec<(BlockKey, Location)>,
    rng: fastrand::Rng,
    /// Blocks on their way at any time: half of them wait for the device.
    lanes: usize,
    size: usize,
}

impl Bench {
    fn new(config: &SsdConfig, huge_pages: bool) -> Result<Self> {
        let mut rng = fastrand::Rng::with_seed(1);
        let (size, lanes) = (config.block_bytes, 2 * config.depth);
        let arena = HostConfig {
            slots: lanes,
            block_bytes: size,
            namespace: NAMESPACE,
            arena: rng.u64(..),
            huge_pages,
            populate: true,
        };
        let memory = HostTier::create(&arena).context("cannot make an arena")?;
        let config = SsdConfig {
            memory: vec![memory.memory()],
            ..config.clone()
        };
        let tier = SsdTier::open(&config)?;
        let recovered = tier.recovered();
        let held: Vec<_> = recovered.iter().map(|it| (it.key, it.location)).collect();
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
            // Other keys than those of a tier opened before.
            keys: u128::from(config.depth) << 32,
            held,
            rng,
            lanes: lanes as usize,
            size,
        })
    }

    /// Writes until no slot is free.
    async fn fill(&mut self) -> Result<()> {
        let mut open = FuturesUnordered::new();
        for _ in 0..self.tier.free_slots() {
            if open.len() == self.lanes {
                self.note(open.next().await)?;
            }
            open.push(self.write()?);
        }
        while let Some(moved) = open.next().await {
            self.note(Some(moved))?;
        }
        Ok(())
    }

    /// Moves blocks for a while.
    async fn turn(&mut self, way: Way, time: Duration) -> Result<Turn> {
        let (began, used) = (Instant::now(), cpu(None)?);
        let mut open = FuturesUnordered::new();
        let mut blocks = 0;
        while began.elapsed() < time {
            while open.len() < self.lanes {
                open.push(match way {
                    Way::Write => self.replace()?,
                    Way::Read => self.read()?,
                });
                blocks += 1;
            }
            self.note(open.next().await)?;
        }
        while let Some(moved) = open.next().await {
            self.note(Some(moved))?;
        }
        let (took, used) = (began.elapsed(), cpu(None)?.saturating_sub(used));
        let gib = (blocks * self.size) as f64 / GIB;
        Ok(Turn {
            gib_per_second: gib / took.as_secs_f64(),
            cpu_ms_per_gib: used.as_secs_f64() * 1e3 / gib,
        })
    }

    /// What looking at blocks costs, in turn at what lies in the memory that transfers use: as much of
    /// it is in caches, and as far apart, as when a transfer has just ended. Both ways to look begin
    /// with a half that nobody has looked at.
    fn cost_of_looking(&self) -> Result<Looks> {
        let slots: Vec<_> = std::iter::from_fn(|| self.memory.reserve()).collect();
        let (a, b) = slots.split_at(slots.len() / 2);
        let (mut hashing, mut loading) = (0.0, 0.0);
        for (hashed, loaded) in [(a, b), (b, a)] {
            hashing += cost_of(hashed, hash)? / 2.0;
            loading += cost_of(loaded, load)? / 2.0;
        }
        Ok(Looks { hashing, loading })
    }

    /// Writes a block instead of another one. Like a node it gives up some at once.
    fn replace(&mut self) -> Result<BoxFuture<'static, Moved>> {
        // A slot is taken once its write goes on, so there must be one for each.
        if self.tier.free_slots() < self.lanes {
            for _ in 0..self.lanes.min(self.held.len()) {
                let (_, at) = self.held.swap_remove(self.rng.usize(..self.held.len()));
                self.tier.evict(at);
            }
        }
        self.write()
    }

    fn write(&mut self) -> Result<BoxFuture<'static, Moved>> {
        let slot = self.memory.reserve().context("no slot of memory is free")?;
        self.keys += 1;
        let key = BlockKey::from_u128(self.keys << 64 | self.keys);
        let from = self.memory.commit(slot, key, self.sum);
        let pin = self.memory.pin(from, key);
        let pin = pin.map_err(|_| anyhow::anyhow!("a block went from memory"))?;
        let writing = self.tier.write(pin, None);
        Ok(Box::pin(async move {
            let outcome = writing.await;
            Moved::Written(key, from, outcome.map_err(|refusal| format!("{refusal:?}")))
        }))
    }

    /// Reads a block drawn at random.
    fn read(&mut self) -> Result<BoxFuture<'static, Moved>> {
        let (key, at) = self.held[self.rng.usize(..self.held.len())];
        let into = self.memory.reserve().context("no slot of memory is free")?;
        let reading = self.tier.read(at, key, into);
        Ok(Box::pin(async move {
            let outcome = reading.await.outcome;
            Moved::Read(outcome.map_or_else(|refusal| Err(format!("{refusal:?}")), |_| Ok(())))
        }))
    }

    fn note(&mut self, moved: Option<Moved>) -> Result<()> {
        match moved {
            None | Some(Moved::Read(Ok(()))) => {}
            Some(Moved::Read(Err(refusal))) => bail!("a block was not read: {refusal}"),
            Some(Moved::Written(_, _, Err(refusal))) => bail!("a block was not written: {refusal}"),
            Some(Moved::Written(key, from, Ok(at))) => {
                let gone = self.memory.evict(from);
                anyhow::ensure!(gone == Eviction::Done, "a written block is still in use");
                self.held.push((key, at));
            }
        }
        Ok(())
    }
}
