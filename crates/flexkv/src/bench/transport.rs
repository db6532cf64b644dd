//! Transports between two processes: TCP and shared memory against memcpy of the same slots, and a node
//! that loads by TCP.
//!
//! The owner is a process of its own, on this host or another. Slots are drawn at random out of more
//! memory than caches hold, on both sides. Everything fetched is verified, as always; what that costs is
//! measured beside. Knows nothing of how a transport or a node works.

mod owner;
mod reader;
mod relay;
mod striped;
mod verification;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_block::Location;
use flexkv_handshake::Credential;
use flexkv_host::{HostTier, HostTransport, HostTransportConfig};
use flexkv_node::Node;
use flexkv_ports::{BlockTier, FetchOutcome, Transport, Want};
use flexkv_tcp::{TcpTransport, Tls, TlsFiles, TransportConfig};
use tokio::time::Instant;

use self::owner::{NAMESPACE, Owner, arena, block_key, location};
pub use self::owner::{Offer, offers, serve};
use self::reader::{Known, load};
pub use self::striped::striped;
use super::{Better, Row, cpu, median};
use crate::report::Times;
use crate::units::show_bytes;

/// The longest that a fetch may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// Blocks of this size and more have the targets of large ones.
const LARGE: usize = 256 << 10;

/// What to measure.
pub struct Plan {
    /// Sizes of blocks.
    pub sizes: Vec<usize>,
    /// Blocks fetched at once.
    pub batches: Vec<usize>,
    /// How long each transport is measured in one round.
    pub time: Duration,
    /// Rounds; in each, all transports have their turn.
    pub rounds: usize,
    /// Bytes of memory on each side, for each size.
    pub memory: u64,
    /// What both sides know.
    pub secret: Vec<u8>,
    /// Certificates of both sides, if TLS is measured, too.
    pub tls: Option<TlsFiles>,
}

/// What one transport did in one round.
struct Turn {
    gb_per_second: f64,
    /// CPU seconds of both processes for 10^9 bytes; of ours alone if the owner is elsewhere.
    cpu_per_gb: f64,
}

/// All rounds of one transport, block size and batch.
#[derive(Default)]
struct Series {
    turns: Vec<Turn>,
    times: Times,
}

/// One block size: what the owner offers, and our side.
struct Side {
    block_bytes: usize,
    slots: u32,
    tier: HostTier,
    /// Where memcpy writes to.
    scratch: Vec<u8>,
    transports: Vec<(&'static str, String, Arc<dyn Transport>)>,
    rng: fastrand::Rng,
}

impl Side {
    fn new(plan: &Plan, offer: &Offer) -> Result<Self> {
        let block_bytes = offer.block_bytes;
        let tier = arena(block_bytes, plan.memory)?;
        let credential = Credential::new(&plan.secret, "bench-reader");
        let bytes = u32::try_from(block_bytes).context("a block is too large")?;
        let plain = TransportConfig::new(NAMESPACE, bytes, credential.clone());
        let tcp: Arc<dyn Transport> = Arc::new(TcpTransport::new(plain.clone()));
        let mut transports = vec![("tcp", offer.tcp.clone(), tcp)];
        if let (Some(tls), Some(files)) = (&offer.tls, &plan.tls) {
            let config = TransportConfig {
                tls: Some(Tls::read(files)?),
                ..plain
            };
            transports.push(("tls", tls.clone(), Arc::new(TcpTransport::new(config))));
        }
        if let Some(shm) = &offer.shm {
            let config = HostTransportConfig::new(NAMESPACE, block_bytes, credential);
            let transport = HostTransport::new(config)?;
            transports.push(("shm", shm.clone(), Arc::new(transport)));
        }
        let slots = tier.shape().slots.min(offer.slots);
        Ok(Self {
            scratch: vec![1; block_bytes * slots as usize],
            block_bytes,
            slots,
            tier,
            transports,
            rng: fastrand::Rng::with_seed(7),
        })
    }

    /// Copies random slots of shared memory to random places of private memory; nothing is hashed.
    fn copy(&mut self, batch: usize) -> Result<()> {
        for _ in 0..batch {
            let slot = self.tier.reserve().context("no free slot")?;
            let at = self.rng.usize(..self.slots as usize) * self.block_bytes;
            let into = &mut self.scratch[at..at + self.block_bytes];
            slot.bytes().read(0, into);
        }
        Ok(())
    }

    /// Fetches random blocks into slots that were not used for longest.
    async fn fetch(&mut self, transport: usize, batch: usize) -> Result<()> {
        let mut wants = Vec::with_capacity(batch);
        for _ in 0..batch {
            let slot = self.rng.u32(..self.slots);
            let location: Location = location(slot);
            wants.push(Want {
                location,
                key: block_key(slot),
                into: self.tier.reserve().context("no free slot")?,
            });
        }
        let (_, endpoint, transport) = &self.transports[transport];
        let fetched = transport.fetch(endpoint, wants, DEADLINE).await;
        let bad = fetched
            .iter()
            .find(|fetched| !matches!(fetched.outcome, FetchOutcome::Fetched(_)));
        if let Some(bad) = bad {
            bail!("{endpoint}: a block was {:?}", bad.outcome);
        }
        Ok(())
    }

    /// All that take turns, with their names.
    fn all(&self) -> Vec<(&'static str, By)> {
        let transports = self.transports.iter().enumerate();
        let transports = transports.map(|(place, (name, ..))| (*name, By::Transport(place)));
        let mut all = vec![("memcpy", By::Copy)];
        all.extend(transports);
        all.push(("node", By::Node));
        all
    }
}

/// A node that loads one prompt after the other, and where the next one begins.
struct Loads {
    node: Arc<Node>,
    known: Known,
    next: usize,
}

impl Loads {
    /// A new node, and prompts of `batch` blocks of what `offer` offers.
    async fn new(plan: &Plan, offer: &Offer, batch: usize) -> Result<Self> {
        let known = Known::new(offer, std::slice::from_ref(&offer.tcp), batch).await?;
        Ok(Self {
            // With memory for half of them it has long evicted what it loads again.
            node: known.reader(&plan.secret, plan.memory / 2).await?,
            known,
            next: 0,
        })
    }

    /// Loads the next prompt: looked up, fetched, kept as this node's own, published.
    async fn load(&mut self, batch: usize) -> Result<()> {
        let keys = self.known.keys();
        if self.next + batch > keys.len() {
            self.next = 0;
        }
        let prompt = &keys[self.next..self.next + batch];
        self.next += batch;
        load(&*self.node, prompt).await
    }
}

/// What brings blocks.
#[derive(Clone, Copy)]
enum By {
    /// Nothing but memcpy.
    Copy,
    /// One of the transports.
    Transport(usize),
    /// A node, which does all that a load takes.
    Node,
}

/// Measures what `offers` offer; `pid` is the owner's process, if it is on this host.
pub async fn run(plan: &Plan, offers: &[Offer], pid: Option<u32>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for offer in offers {
        let mut side = Side::new(plan, offer)?;
        for batch in &plan.batches {
            if 4 * batch > side.slots as usize {
                bail!(
                    "{batch} blocks at once need more memory than {}",
                    show_bytes(plan.memory)
                );
            }
            let mut loads = Loads::new(plan, offer, *batch).await?;
            let measured = measure(plan, &mut side, &mut loads, *batch, pid).await?;
            rows.extend(show(side.block_bytes, *batch, &measured, pid.is_some()));
        }
        rows.extend(verification::measure(plan, &side.tier)?);
    }
    Ok(rows)
}

/// The owner on this host, as a process of its own, and what it offers.
pub async fn local(plan: &Plan, program: Vec<OsString>, secret: PathBuf) -> Result<Vec<Row>> {
    let owner = Owner::spawn(plan, program, secret).await?;
    let rows = run(plan, owner.offers(), owner.pid()).await;
    owner.stop().await?;
    rows
}

async fn measure(
    plan: &Plan,
    side: &mut Side,
    loads: &mut Loads,
    batch: usize,
    pid: Option<u32>,
) -> Result<BTreeMap<&'static str, Series>> {
    let mut series: BTreeMap<&'static str, Series> = BTreeMap::new();
    let all = side.all();
    // The first round opens connections and faults pages in; it does not count.
    for round in 0..=plan.rounds {
        for (name, by) in &all {
            let (began, used) = (Instant::now(), cpu(pid)?);
            let mut times = Times::default();
            let mut batches = 0u32;
            while began.elapsed() < plan.time {
                let start = Instant::now();
                match by {
                    By::Copy => side.copy(batch)?,
                    By::Transport(transport) => side.fetch(*transport, batch).await?,
                    By::Node => loads.load(batch).await?,
                }
                times.add(start.elapsed());
                batches += 1;
            }
            let gigabytes = f64::from(batches) * (batch * side.block_bytes) as f64 / 1e9;
            let (took, used) = (began.elapsed(), cpu(pid)?.saturating_sub(used));
            if round > 0 {
                let series = series.entry(name).or_default();
                series.times.merge(&times);
                series.turns.push(Turn {
                    gb_per_second: gigabytes / took.as_secs_f64(),
                    cpu_per_gb: used.as_secs_f64() / gigabytes,
                });
            }
        }
    }
    Ok(series)
}

fn show(
    block_bytes: usize,
    batch: usize,
    measured: &BTreeMap<&'static str, Series>,
    both: bool,
) -> Vec<Row> {
    let what = format!("{} x {batch}", show_bytes(block_bytes as u64));
    let mut rows = Vec::new();
    let memcpy = measured.get("memcpy");
    for (name, series) in measured {
        let rate = median(series.turns.iter().map(|turn| turn.gb_per_second));
        rows.push(Row::new(
            format!("{name} {what}"),
            rate,
            "GB/s",
            Better::Higher,
        ));
        if let (Some(memcpy), "tcp" | "tls" | "shm" | "node") = (memcpy, *name) {
            let turns = series.turns.iter().zip(&memcpy.turns);
            let ratio = median(turns.map(|(ours, copy)| ours.gb_per_second / copy.gb_per_second));
            let row = Row::new(
                format!("{name} {what} of memcpy"),
                ratio,
                "",
                Better::Higher,
            );
            let wanted = *name == "shm" && batch >= 32 && block_bytes >= 1 << 20;
            rows.push(if wanted { row.target(0.95) } else { row });
        }
        for (quantile, share) in [("p50", 0.5), ("p99", 0.99)] {
            let time = series.times.micros(share);
            let row = Row::new(
                format!("{name} {what} {quantile}"),
                time,
                "us",
                Better::Lower,
            );
            let single = batch == 1 && block_bytes == 64 << 10 && quantile == "p50";
            rows.push(match *name {
                "tcp" if single => row.target(60.0),
                "shm" if single => row.target(16.0),
                _ => row,
            });
        }
        let cpu = median(series.turns.iter().map(|turn| turn.cpu_per_gb));
        let whose = if both { "both ends" } else { "reader" };
        let row = Row::new(
            format!("{name} {what} CPU, {whose}"),
            cpu,
            "s/GB",
            Better::Lower,
        );
        rows.push(match (*name, batch >= 32, block_bytes) {
            ("tcp", true, LARGE..) if both => row.target(0.60),
            ("tcp", true, 65_536) if both => row.target(0.65),
            _ => row,
        });
    }
    rows
}
