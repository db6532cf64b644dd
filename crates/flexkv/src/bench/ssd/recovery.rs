//! Opening a full tier of small blocks again: with its journal, without it, and what reading the
//! same bytes one after the other takes. Knows nothing of what is in the files.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, bail};
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{BlockTier as _, WriteSlot};
use flexkv_ssd::io::{EngineParts, IoEngine, Op, Request, Threads, Uring};
use flexkv_ssd::{SsdConfig, SsdDir, SsdTier};
use tokio::time::Instant;

use super::{Bench, GIB, NAMESPACE, Plan};
use crate::bench::{Better, Row, median};

/// Bytes of the blocks.
const BLOCK: usize = 4096;
/// Bytes of a block's place on disk, which begins with a page of its own.
const SLOT: u64 = 2 * BLOCK as u64;
/// Bytes of one of the reads that ours is compared with, and how many are in flight.
const READ: usize = 4 << 20;
const READS: usize = 8;

/// Fills a tier in `dir` and opens it again, several times.
pub(super) async fn measure(plan: &Plan, dir: &Path) -> Result<Vec<Row>> {
    let bytes = 4096 + u64::from(plan.recovered) * SLOT;
    Bench::new(&config(dir, bytes), plan.huge_pages)?
        .fill()
        .await?;
    let (mut with, mut without, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        with.push(open(dir, bytes, plan.recovered)?);
        let inside = std::fs::read_dir(dir)?.next();
        let inside = inside.context("files were made")??.path();
        std::fs::remove_file(inside.join("journal"))?;
        without.push(bytes as f64 / GIB / open(dir, bytes, plan.recovered)?);
        raw.push(read_through(&inside)?);
    }
    let ratio = median(without.iter().zip(&raw).map(|(ours, raw)| ours / raw));
    let [with, without, raw] = [with, without, raw].map(|values| median(values.into_iter()));
    let name = format!("open with {} blocks", plan.recovered);
    let row =
        |what: &str, value, unit, better| Row::new(format!("{name}{what}"), value, unit, better);
    Ok(vec![
        row(", journal", with, "s", Better::Lower).target(1.0),
        row(
            ", no journal",
            bytes as f64 / GIB / without,
            "s",
            Better::Lower,
        ),
        row(", no journal: read", without, "GiB/s", Better::Higher).peer("plain reads", raw),
        row(
            ", no journal: read of plain reads",
            ratio,
            "",
            Better::Higher,
        )
        .target(0.5),
    ])
}

fn config(dir: &Path, bytes: u64) -> SsdConfig {
    let path = dir.to_owned();
    SsdConfig::new(vec![SsdDir { path, bytes }], NAMESPACE, BLOCK)
}

/// Seconds until the tier is open with all its blocks.
fn open(dir: &Path, bytes: u64, blocks: u32) -> Result<f64> {
    let began = Instant::now();
    let tier = SsdTier::open(&config(dir, bytes))?;
    let took = began.elapsed().as_secs_f64();
    let found = tier.stats().recovered_blocks;
    if found != u64::from(blocks) {
        bail!("{found} of {blocks} blocks were recovered");
    }
    Ok(took)
}

/// Reads all files of blocks from front to back, past the page cache, several reads at a time and
/// without a look at them; says GiB/s.
fn read_through(dir: &Path) -> Result<f64> {
    let mut files = Vec::new();
    let mut wanted = Vec::new();
    for number in 0.. {
        let path = dir.join(format!("segment-{number:05}"));
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(direct)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if number > 0 && error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let len = file.metadata()?.len();
        let reads = (0..len).step_by(READ);
        wanted.extend(reads.map(|at| (number, at, (len - at).min(READ as u64) as usize)));
        files.push(file);
    }
    let memory = HostTier::create(&HostConfig {
        slots: READS as u32,
        block_bytes: READ,
        namespace: NAMESPACE,
        arena: 0,
        huge_pages: true,
        populate: true,
    })?;
    let parts = EngineParts {
        files: Arc::new(files),
        depth: READS as u32,
        memory: vec![memory.memory()],
        settled: Arc::new(|| ()),
    };
    let engine: Box<dyn IoEngine> = match Uring::new(&parts) {
        Ok(engine) => Box::new(engine),
        Err(_) => Box::new(Threads::new(&parts)?),
    };
    let began = Instant::now();
    let bytes = read_all(&*engine, &memory, &wanted)?;
    Ok(bytes as f64 / GIB / began.elapsed().as_secs_f64())
}

/// Does all these reads, each `(file, offset, bytes)`; says how many bytes came.
fn read_all(
    engine: &dyn IoEngine,
    memory: &HostTier,
    wanted: &[(usize, u64, usize)],
) -> Result<usize> {
    let (done, results) = channel::<(WriteSlot, io::Result<()>)>();
    let mut bytes = 0;
    let mut open = 0;
    for (file, offset, len) in wanted {
        while memory.free_slots() == 0 {
            let (_, result) = results.recv()?;
            result?;
            open -= 1;
        }
        let slot = memory.reserve().context("a slot was free")?;
        let request = Request::Read(slot.bytes().part(0, *len));
        let done = done.clone();
        let done = Box::new(move |result| drop(done.send((slot, result))));
        engine.submit(Op {
            file: *file,
            offset: *offset,
            request,
            done,
        });
        bytes += len;
        open += 1;
    }
    for (_, result) in results.iter().take(open) {
        result?;
    }
    Ok(bytes)
}
