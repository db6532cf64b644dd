//! An owner and a reader on two hosts: `two_hosts owner ADDRESS` serves blocks until it is ended,
//! `two_hosts reader ADDRESS` reads them, then again and again until the owner's host is gone.
//!
//! `cargo xtask rdma --two` runs it in two virtual machines.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_handshake::Credential;
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{BlockTier as _, FetchOutcome, Transport as _, Want};
use flexkv_rdma::{RdmaArena, RdmaConfig, RdmaServer, RdmaServerConfig, RdmaTransport, VerbsNic};

const SLOTS: u32 = 32;
const BYTES: usize = 64 << 10;
/// How long a reader waits for its owner to come up.
const COMING: Duration = Duration::from_secs(120);
/// A fetch's deadline, and how much later than that it may end.
const DEADLINE: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &words[..] {
        [role, address] if role == "owner" => own(address).await,
        [role, address] if role == "reader" => read(address).await,
        _ => Err("usage: two_hosts owner|reader ADDRESS".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("test two_hosts ... FAILED\nflexkv: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    // Nobody reads it if this fails.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn arena() -> Result<(HostTier, Arc<RdmaArena>), Failure> {
    let tier = HostTier::create(&HostConfig {
        slots: SLOTS,
        block_bytes: BYTES,
        namespace: NamespaceId::from_u128(1),
        arena: 2,
        huge_pages: false,
        populate: true,
    })?;
    let nic = VerbsNic::open(None, None)?;
    say(&format!("flexkv: {nic:?}"));
    let registered = RdmaArena::register(Arc::new(nic), tier.memory(), *tier.layout())?;
    Ok((tier, registered))
}

fn credential(name: &str) -> Credential {
    Credential::new(b"the secret of two hosts", name)
}

fn key(n: u32) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | 9)
}

fn content(n: u32) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(u64::from(n));
    (0..BYTES).map(|_| rng.u8(..)).collect()
}

async fn own(address: &str) -> Result<(), Failure> {
    let (tier, registered) = arena()?;
    for n in 0..SLOTS {
        let slot = tier.reserve().ok_or("no free slot")?;
        let bytes = content(n);
        slot.bytes().write(0, &bytes);
        tier.commit(slot, key(n), Checksum::of(&bytes));
    }
    let address: SocketAddr = address.parse()?;
    let config = RdmaServerConfig::new(credential("owner"));
    let server = RdmaServer::start(address, registered, config)?;
    say(&format!("flexkv: serving {}", server.endpoint()));
    std::future::pending::<()>().await;
    Ok(())
}

async fn read(address: &str) -> Result<(), Failure> {
    let (tier, registered) = arena()?;
    let config = RdmaConfig::new(credential("reader"));
    let transport = RdmaTransport::new(registered, config);
    let endpoint = format!("rdma://{address}");
    let coming = async {
        while !is_all(&fetch(&tier, &transport, &endpoint).await?) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<(), Failure>(())
    };
    let came = tokio::time::timeout(COMING, coming).await;
    let reason = transport.last_refusal(&endpoint).unwrap_or_default();
    came.map_err(|_| format!("the owner does not come up: {reason}"))??;
    say("test two_hosts::blocks_of_another_host_are_read ... ok");
    say(&format!("flexkv: {:?}", transport.counts()));
    say("flexkv: kill the owner");
    let mut whole = 0;
    let lost = loop {
        let outcomes = fetch(&tier, &transport, &endpoint).await?;
        if !is_all(&outcomes) {
            break outcomes;
        }
        whole += 1;
    };
    let ended = |outcome: &FetchOutcome| {
        matches!(
            outcome,
            FetchOutcome::Fetched(_) | FetchOutcome::Unreachable
        )
    };
    if !lost.iter().all(ended) {
        return Err(format!("a host that is gone is not unreachable: {lost:?}").into());
    }
    if tier.free_slots() != SLOTS as usize {
        return Err("buffers did not come back".into());
    }
    let reason = transport.last_refusal(&endpoint).unwrap_or_default();
    say(&format!(
        "flexkv: {whole} whole fetches more, then: {reason}"
    ));
    say("test two_hosts::a_host_that_is_killed_costs_its_blocks_and_nothing_else ... ok");
    Ok(())
}

fn is_all(outcomes: &[FetchOutcome]) -> bool {
    let fetched = |outcome: &FetchOutcome| matches!(outcome, FetchOutcome::Fetched(_));
    outcomes.iter().all(fetched)
}

/// Fetches all blocks; what was fetched must be the blocks, and the fetch must end.
async fn fetch(
    tier: &HostTier,
    transport: &RdmaTransport,
    endpoint: &str,
) -> Result<Vec<FetchOutcome>, Failure> {
    let mut wants = Vec::new();
    for n in 0..SLOTS {
        let location = Location {
            tier: Tier::Host,
            slot: SlotId(n),
            generation: Generation::FIRST,
        };
        let into = tier.reserve().ok_or("a buffer did not come back")?;
        wants.push(Want {
            location,
            key: key(n),
            into,
        });
    }
    let fetching = transport.fetch(endpoint, wants, DEADLINE);
    let fetched = tokio::time::timeout(DEADLINE + GRACE, fetching).await;
    let fetched = fetched.map_err(|_| "a fetch did not end")?;
    for (n, fetched) in (0..SLOTS).zip(&fetched) {
        let found = matches!(fetched.outcome, FetchOutcome::Fetched(_));
        if found && fetched.into.bytes().to_vec() != content(n) {
            return Err(format!("the bytes of block {n} are wrong").into());
        }
    }
    Ok(fetched.iter().map(|fetched| fetched.outcome).collect())
}
