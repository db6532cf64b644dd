//! Kills a process that writes, at random moments, and looks what a restart finds: every block that
//! was acknowledged, no other, and never a wrong byte.
//!
//! `cargo test -p flexkv-ssd --test crash`; `FLEXKV_SSD_CRASHES` says how often, if not 8 times, and
//! `FLEXKV_SSD_ENGINES` which engines have their turns (`auto,threads,rio`), if not all that were built.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location, NamespaceId, Tier};
use flexkv_ports::{BlockTier as _, HeapTier, StagedTier as _, TierShape};
use flexkv_ssd::{EngineChoice, SsdConfig, SsdDir, SsdTier};

const BLOCK: usize = 64 << 10;
const SLOTS: u64 = 96;
/// Writes at once.
const LANES: u64 = 8;
/// Engines that were built.
#[cfg(not(feature = "rio"))]
const ENGINES: &[&str] = &["auto", "threads"];
/// Engines that were built.
#[cfg(feature = "rio")]
const ENGINES: &[&str] = &["auto", "threads", "rio"];
/// Tells the program to be the process that is killed.
const CHILD: &str = "write-until-killed";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let [_, what, dir, first, engine] = &args[..]
        && what == CHILD
    {
        runtime.block_on(child(
            Path::new(dir),
            first.parse().expect("a number"),
            engine.parse().expect("an engine"),
        ));
        return ExitCode::FAILURE;
    }
    let crashes = std::env::var("FLEXKV_SSD_CRASHES").map_or(8, |n| n.parse().expect("a number"));
    let engines = std::env::var("FLEXKV_SSD_ENGINES").unwrap_or_else(|_| ENGINES.join(","));
    let engines: Vec<_> = engines.split(',').collect();
    runtime.block_on(parent(crashes, &engines));
    ExitCode::SUCCESS
}

fn config(dir: &Path, engine: EngineChoice) -> SsdConfig {
    let stride = 4096 + BLOCK as u64;
    let dir = SsdDir {
        path: dir.to_owned(),
        bytes: 4 * (4096 + SLOTS / 4 * stride),
    };
    let mut config = SsdConfig::new(vec![dir], NamespaceId::from_u128(1), BLOCK);
    config.segment_bytes = 4096 + SLOTS / 4 * stride;
    config.engine = engine;
    config
}

fn memory() -> HeapTier {
    HeapTier::new(TierShape {
        tier: Tier::Host,
        slots: 2 * LANES as u32,
        block_bytes: BLOCK,
    })
}

fn key(n: u64) -> BlockKey {
    BlockKey::from_u128(u128::from(n) + 1)
}

fn content(n: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    fastrand::Rng::with_seed(n).fill(&mut bytes);
    bytes
}

/// Says on standard output what is about to happen and what has happened.
fn say(what: char, n: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what} {n}").and_then(|()| out.flush()).ok();
}

/// Writes blocks from number `first` on, evicts old ones, until it is killed.
async fn child(dir: &Path, first: u64, engine: EngineChoice) {
    let tier = Arc::new(SsdTier::open(&config(dir, engine)).expect("the tier opens"));
    let memory = Arc::new(memory());
    let mut old: Vec<Location> = tier
        .recovered()
        .iter()
        .map(|block| block.location)
        .collect();
    for location in old.drain(..old.len() / 2) {
        // Numbers of blocks of a former life are not known here; the parent takes all as doubtful.
        tier.evict(location);
    }
    say('S', 0);
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let (tier, memory) = (tier.clone(), memory.clone());
        lanes.spawn(async move {
            let mut mine: Vec<(u64, Location)> = Vec::new();
            for n in (first + lane..).step_by(LANES as usize) {
                say('A', n);
                if let Some(at) = write(&tier, &memory, n).await {
                    say('W', n);
                    mine.push((n, at));
                }
                if mine.len() as u64 > SLOTS / LANES / 4 {
                    let (n, at) = mine.remove(0);
                    say('E', n);
                    tier.evict(at);
                }
            }
        });
    }
    lanes.join_all().await;
}

async fn write(tier: &SsdTier, memory: &HeapTier, n: u64) -> Option<Location> {
    let slot = memory.reserve()?;
    let bytes = content(n);
    slot.bytes().write(0, &bytes);
    let at = memory.commit(slot, key(n), Checksum::of(&bytes));
    let pin = memory.pin(at, key(n)).ok()?;
    let written = tier.write(pin, n.checked_sub(1).map(key)).await.ok();
    memory.evict(at);
    written
}

/// What the child said.
#[derive(Default)]
struct Said {
    started: bool,
    written: u64,
    attempted: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
}

/// Lets a child run for a moment and kills it.
async fn crash(dir: &Path, first: u64, engine: &str, moment: Duration) -> Said {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args([CHILD, &dir.to_string_lossy(), &first.to_string(), engine])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    // The moment counts from when it writes, so that all moments of writing are hit.
    let mut lines = Vec::new();
    let mut line = String::new();
    while out.read_line(&mut line).expect("text") > 0 && !line.starts_with('S') {
        line.clear();
    }
    let reader = std::thread::spawn(move || {
        lines.push(line);
        lines.extend(out.lines().map_while(Result::ok));
        lines
    });
    tokio::time::sleep(moment).await;
    child.kill().expect("kill -9");
    child.wait().expect("it ends");
    let mut said = Said::default();
    for line in reader.join().expect("no panic") {
        let mut words = line.split_whitespace();
        let (what, n) = (words.next(), words.next().and_then(|n| n.parse().ok()));
        let (Some(what), Some(n)) = (what, n) else {
            continue;
        };
        match what {
            "S" => said.started = true,
            "A" => drop(said.attempted.insert(n)),
            "W" => {
                said.written += 1;
                said.acknowledged.insert(n);
            }
            // It may be gone or not.
            "E" => drop(said.acknowledged.remove(&n)),
            other => panic!("the child said {other}"),
        }
    }
    said
}

async fn parent(crashes: u32, engines: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rng = fastrand::Rng::new();
    let mut known: BTreeMap<BlockKey, u64> = BTreeMap::new();
    let (mut first, mut written, mut kept) = (0, 0, 0);
    for (round, engine) in (0..crashes).zip(engines.iter().cycle()) {
        let moment = Duration::from_micros(rng.u64(0..150_000));
        let said = crash(dir.path(), first, engine, moment).await;
        assert!(said.started, "the tier did not open in round {round}");
        known.extend(said.attempted.iter().map(|n| (key(*n), *n)));
        first = said.attempted.last().map_or(first, |n| n + 1);
        let tier = SsdTier::open(&config(dir.path(), EngineChoice::Auto)).expect("the tier opens");
        let memory = memory();
        let mut there = BTreeSet::new();
        for block in tier.recovered() {
            let n = *known.get(&block.key).expect("no block was made up");
            let into = memory.reserve().expect("memory to read into");
            let read = tier.read(block.location, block.key, into).await;
            assert!(read.outcome.is_ok(), "block {n}: {:?}", read.outcome);
            assert!(
                read.into.bytes().to_vec() == content(n),
                "block {n} has other bytes"
            );
            there.insert(n);
        }
        let lost: Vec<_> = said.acknowledged.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "acknowledged and lost in round {round}: {lost:?}"
        );
        written += said.written;
        kept += said.acknowledged.len();
    }
    writeln!(
        std::io::stdout(),
        "{crashes} kills with {engines:?}, {written} blocks written, {kept} of them acknowledged last and found, \
         0 lost, 0 wrong"
    )
    .ok();
}
