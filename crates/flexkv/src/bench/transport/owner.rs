//! The process whose blocks are fetched: an arena for each block size, served by every transport.
//!
//! It tells what it offers as one line of JSON and ends when its standard input does. Knows nothing
//! of what is measured.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_block::{BlockKey, Checksum, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_handshake::Credential;
use flexkv_host::{HostConfig, HostTier, ShareConfig, ShareServer};
use flexkv_ports::BlockTier as _;
use flexkv_tcp::{ServerConfig, TcpServer, Tls, TlsFiles};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Plan;

/// The namespace of what is fetched, which no model has.
pub(super) const NAMESPACE: NamespaceId = NamespaceId::from_u128(0xbe2c);
/// How long the owner may take to fill its memory, and to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an owner offers for one block size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Its blocks.
    pub slots: u32,
    /// Where TCP is served.
    pub tcp: String,
    /// Where TCP is served with TLS, if it is.
    pub tls: Option<String>,
    /// Where memory is shared, if it is.
    pub shm: Option<String>,
}

/// An arena of blocks of `block_bytes` bytes that takes `memory` bytes.
pub(super) fn arena(block_bytes: usize, memory: u64) -> Result<HostTier> {
    let slots = (memory / block_bytes as u64).max(1);
    HostTier::create(&HostConfig {
        slots: u32::try_from(slots).context("too many blocks")?,
        block_bytes,
        namespace: NAMESPACE,
        arena: fastrand::Rng::new().u64(..),
        // As a node has it unless told otherwise.
        huge_pages: true,
        populate: true,
    })
    .context("cannot make an arena")
}

/// The key of the block in slot `slot`.
pub(super) fn block_key(slot: u32) -> BlockKey {
    BlockKey::from_u128(u128::from(slot) + 1)
}

/// Where the block of slot `slot` lies: every slot is filled once.
pub(super) fn location(slot: u32) -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    }
}

/// Fills every slot with random bytes.
fn fill(tier: &HostTier) {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut bytes = vec![0; tier.shape().block_bytes];
    while let Some(slot) = tier.reserve() {
        rng.fill(&mut bytes);
        slot.bytes().write(0, &bytes);
        let key = block_key(slot.slot().0);
        tier.commit(slot, key, Checksum::of(&bytes));
    }
}

/// Serves blocks of all sizes of the plan at `listen` (and the ports after it, a port for each size, then
/// with TLS one for each again) until standard input ends; tells what it offers on `out`.
pub async fn serve(plan: &Plan, listen: SocketAddr, out: &mut dyn Write) -> Result<()> {
    let credential = Credential::new(&plan.secret, "bench-owner");
    let mut served = Vec::new();
    let mut offers = Vec::new();
    for (number, block_bytes) in (0u16..).zip(&plan.sizes) {
        let tier = arena(*block_bytes, plan.memory)?;
        fill(&tier);
        let tier = Arc::new(tier);
        let config = ServerConfig::new(NAMESPACE, credential.clone());
        let tcp = start(listen, number, tier.clone(), config.clone())?;
        let tls = match &plan.tls {
            None => None,
            Some(files) => {
                let tls = Some(Tls::read(files)?);
                let number = number + plan.sizes.len() as u16;
                Some(start(
                    listen,
                    number,
                    tier.clone(),
                    ServerConfig { tls, ..config },
                )?)
            }
        };
        let shm = ShareServer::start(&tier, ShareConfig::new(credential.clone()))
            .context("cannot share memory")?;
        offers.push(Offer {
            block_bytes: *block_bytes,
            slots: tier.shape().slots,
            tcp: tcp.endpoint().to_owned(),
            tls: tls.as_ref().map(|tls| tls.endpoint().to_owned()),
            shm: Some(shm.endpoint().to_owned()),
        });
        served.push((tcp, tls, shm));
    }
    serde_json::to_writer(&mut *out, &offers)?;
    writeln!(out)?;
    out.flush()?;
    let mut input = tokio::io::stdin();
    while matches!(input.read(&mut [0; 64]).await, Ok(1..)) {}
    drop(served);
    Ok(())
}

/// Serves at the port `number` after that of `listen`, or at any if that has none.
fn start(
    listen: SocketAddr,
    number: u16,
    tier: Arc<HostTier>,
    config: ServerConfig,
) -> Result<TcpServer> {
    let at = match listen.port() {
        0 => listen,
        _ => after(listen, number)?,
    };
    TcpServer::start(at, tier, config).with_context(|| format!("cannot listen at {at}"))
}

/// The address whose port is `number` ports after that of `first`.
fn after(first: SocketAddr, number: u16) -> Result<SocketAddr> {
    let port = first.port().checked_add(number);
    let port = port.with_context(|| format!("there is no port {number} after {first}"))?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// What the owner that serves at `peer` offers, if it was started with the same plan.
pub fn offers(plan: &Plan, peer: SocketAddr) -> Result<Vec<Offer>> {
    let offer = |(number, block_bytes): (u16, &usize)| {
        let tls = match plan.tls {
            Some(_) => Some(after(peer, number + plan.sizes.len() as u16)?),
            None => None,
        };
        Ok(Offer {
            block_bytes: *block_bytes,
            slots: u32::try_from((plan.memory / *block_bytes as u64).max(1))?,
            tcp: format!("tcp://{}", after(peer, number)?),
            tls: tls.map(|at| format!("tls://{at}")),
            shm: None,
        })
    };
    (0u16..).zip(&plan.sizes).map(offer).collect()
}

/// The arguments that name these files.
fn tls_words(files: &TlsFiles) -> Vec<OsString> {
    let mut words = Vec::new();
    for (option, file) in [
        ("--tls-certificate-file", &files.certificate),
        ("--tls-key-file", &files.key),
        ("--tls-ca-file", &files.authorities),
    ] {
        words.extend([option.into(), file.clone().into_os_string()]);
    }
    if let Some(name) = &files.name {
        words.extend(["--tls-name".into(), name.into()]);
    }
    words
}

/// An owner's process, killed when dropped.
pub(super) struct Owner {
    child: Child,
    offers: Vec<Offer>,
}

impl Owner {
    /// Starts `program`, which is this command, as the owner.
    pub(super) async fn spawn(
        plan: &Plan,
        program: Vec<OsString>,
        secret: PathBuf,
    ) -> Result<Self> {
        let (program, first) = program.split_first().context("no program to start")?;
        let sizes: Vec<_> = plan.sizes.iter().map(|size| format!("{size} B")).collect();
        let mut child = Command::new(program)
            .args(first)
            .args(["bench", "transport", "--serve", "127.0.0.1:0", "--sizes"])
            .arg(sizes.join(","))
            .args(["--memory", &format!("{} B", plan.memory)])
            .arg("--secret-file")
            .arg(secret)
            .args(plan.tls.iter().flat_map(tls_words))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the owner")?;
        let output = child.stdout.take().context("the owner has no output")?;
        let mut lines = BufReader::new(output).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line.context("the owner does not begin")??;
        let line = line.context("the owner ended at once")?;
        let offers = serde_json::from_str(&line).context("the owner speaks nonsense")?;
        Ok(Self { child, offers })
    }

    /// What it offers.
    pub(super) fn offers(&self) -> &[Offer] {
        &self.offers
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Lets it end.
    pub(super) async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.context("the owner does not end")??;
        Ok(())
    }
}
