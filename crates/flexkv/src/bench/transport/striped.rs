//! Blocks striped over four owners of which one is slow, against the other three alone.
//!
//! Owners are processes of this host. The reader is a node in this process, a new one in each turn, which
//! fetches by TCP; the slow owner is behind a relay. Knows nothing of how a node decides whom to ask.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::Plan;
use super::owner::{Offer, Owner};
use super::reader::{Known, load};
use super::relay::Relay;
use crate::bench::{Better, Row, median};
use crate::units::show_bytes;

/// Owners, the slow one included.
const OWNERS: usize = 4;
/// What the slow one does of what another one does.
const SLOWNESS: f64 = 0.01;

/// Measures all sizes of the plan; `program` is this command.
pub async fn striped(plan: &Plan, program: Vec<OsString>, secret: PathBuf) -> Result<Vec<Row>> {
    let mut owners = Vec::new();
    for _ in 0..OWNERS {
        owners.push(Owner::spawn(plan, program.clone(), secret.clone()).await?);
    }
    let mut rows = Vec::new();
    for size in 0..plan.sizes.len() {
        let offers: Vec<&Offer> = owners.iter().map(|owner| &owner.offers()[size]).collect();
        rows.extend(measure(plan, &offers).await?);
    }
    for owner in owners {
        owner.stop().await?;
    }
    Ok(rows)
}

/// One block size: alternately from the three fast ones and from all four.
async fn measure(plan: &Plan, offers: &[&Offer]) -> Result<Vec<Row>> {
    let (slow, fast) = offers.split_last().context("no owners")?;
    let address: SocketAddr = slow.tcp.trim_start_matches("tcp://").parse()?;
    let blocks = slow.slots as usize;
    let relay = Relay::start(address).await?;
    let mut endpoints: Vec<String> = fast.iter().map(|offer| offer.tcp.clone()).collect();
    let three = Known::new(slow, &endpoints, blocks).await?;
    endpoints.push(format!("tcp://{}", relay.address()));
    let four = Known::new(slow, &endpoints, blocks).await?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    // The first round is for the owners' page tables; it does not count.
    for round in 0..=plan.rounds {
        let alone = read(plan, &three).await?;
        relay.set_rate(SLOWNESS * alone / fast.len() as f64);
        let beside = read(plan, &four).await?;
        if round > 0 {
            rates.push((alone, beside));
            ratios.push(beside / alone);
        }
    }
    let what = format!("striped {}", show_bytes(slow.block_bytes as u64));
    let row = |name: &str, value, unit| {
        let name = format!("{what}, {name}");
        Row::new(name, value, unit, Better::Higher)
    };
    let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let alone = median(rates.iter().map(|(alone, _)| alone / 1e9));
    let beside = median(rates.iter().map(|(_, beside)| beside / 1e9));
    Ok(vec![
        row("3 owners", alone, "GB/s"),
        row("and one of 1 % of their speed", beside, "GB/s"),
        row("of the three", median(ratios.into_iter()), "").target(0.9),
        row("of the three, worst round", worst, ""),
    ])
}

/// Bytes a second that a new reader gets all blocks at.
async fn read(plan: &Plan, known: &Known) -> Result<f64> {
    // Room for what is asked of two owners.
    let memory = plan.memory + plan.memory / 4;
    let reader = known.reader(&plan.secret, memory).await?;
    let began = Instant::now();
    load(&*reader, known.keys()).await?;
    let took = began.elapsed();
    reader.stop().await;
    let bytes = known.keys().len() * known.block_bytes();
    Ok(bytes as f64 / took.as_secs_f64())
}
