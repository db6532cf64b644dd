//! What verifying a block costs: its checksum, of bytes that have just come and are still in cache, and
//! of bytes that lie in memory.
//!
//! Transports hash what comes as it comes, so the first is what they pay, and the second what they
//! would pay if they hashed afterwards. Knows nothing of transports.

use std::hint::black_box;

use anyhow::{Context as _, Result};
use flexkv_block::Checksum;
use flexkv_host::HostTier;
use flexkv_ports::BlockTier as _;
use tokio::time::Instant;

use super::Plan;
use crate::bench::{Better, Row, cpu_of_thread, median};
use crate::units::show_bytes;

/// Bytes that come at a time, and are hashed then.
const WINDOW: usize = 256 << 10;

/// Hashes blocks of `tier`, which is idle.
pub(super) fn measure(plan: &Plan, tier: &HostTier) -> Result<Vec<Row>> {
    let block_bytes = tier.shape().block_bytes;
    let (mut cached, mut cold) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let slot = tier.reserve().context("no free slot")?;
        let window = slot.bytes().part(0, block_bytes.min(WINDOW));
        cached.push(cost(plan, window.len(), || Some(window.checksum()))?);
        drop(slot);
        // Slots that come one after the other are together far more than caches hold.
        cold.push(cost(plan, block_bytes, || {
            tier.reserve().map(|slot| slot.bytes().checksum())
        })?);
    }
    let name = |what| format!("checksum {} {what}", show_bytes(block_bytes as u64));
    let row = |what, costs: Vec<f64>| {
        Row::new(name(what), median(costs.into_iter()), "s/GB", Better::Lower)
    };
    Ok(vec![row("in cache", cached), row("in memory", cold)])
}

/// CPU seconds of this thread for 10^9 bytes, `bytes` of which are hashed by a call.
fn cost(plan: &Plan, bytes: usize, hash: impl Fn() -> Option<Checksum>) -> Result<f64> {
    let (began, used) = (Instant::now(), cpu_of_thread()?);
    let mut calls = 0u32;
    while began.elapsed() < plan.time {
        black_box(hash());
        calls += 1;
    }
    let used = cpu_of_thread()?.saturating_sub(used).as_secs_f64();
    Ok(used / (f64::from(calls) * bytes as f64 / 1e9))
}
