//! What a large cluster takes is what the formulas of `docs/scale.md` say: bytes to and from the store,
//! how often it is asked, memory of a snapshot.
//!
//! Knows counts and constants, not how they came about.

use std::time::Duration;

use flexkv_index::pace::{
    CURSOR_BYTES, ENTRY_FRAMING, LOG_FRAMING, MEMBER_BYTES, MEMBERS_LOOKED_AT,
};
use flexkv_index::{Share, SnapshotStats};

use crate::store::Traffic;

/// How often a node lists the members if nothing holds it back, and for how long a lease is renewed.
const LISTS: Duration = Duration::from_secs(2);
const RENEWALS: f64 = 10.0 / 3.0;
/// Header of an entry.
const ENTRY_HEADER: f64 = 16.0;
/// Bytes that one change takes in a log, at least and at most.
const CHANGE: std::ops::RangeInclusive<f64> = 8.0..=18.0;
/// By how much a measured value may be over its formula: a list or a reading more at the edges.
const OVER: f64 = 1.15;
/// Entries that arrive together share the frame of a reply, so the formula is an upper bound.
const UNDER: f64 = 0.5;
/// A snapshot with little in it, and each replica that nobody shares, in short prompts.
const SNAPSHOT_BYTES: f64 = 350e3;
const REPLICA_BYTES: f64 = 33.0;

/// What all nodes did in a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) seconds: f64,
    /// All nodes, and those of them that changed something.
    pub(crate) nodes: usize,
    pub(crate) active: usize,
    /// Blocks added and removed.
    pub(crate) changes: u64,
    /// Entries published and their bytes.
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// What was exchanged with the store.
    pub(crate) traffic: Traffic,
    pub(crate) budget: u64,
}

impl Work {
    fn a_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds
    }

    fn share(&self) -> Share {
        Share {
            bytes_per_second: self.budget,
            nodes: self.nodes as u32,
            active: self.active as u32,
        }
    }

    /// Bytes of one change in a log.
    pub(crate) fn bytes_a_change(&self) -> f64 {
        (self.bytes as f64 - ENTRY_HEADER * self.entries as f64) / self.changes.max(1) as f64
    }

    /// What the store sends in a second: every node reads every entry, and looks at some members.
    pub(crate) fn sent(&self) -> f64 {
        let framed = self.entries * (ENTRY_FRAMING + LOG_FRAMING);
        let lists = self.share().members_interval(LISTS).as_secs_f64();
        let nodes = self.nodes as f64;
        let looked_at = MEMBERS_LOOKED_AT.min(self.nodes as u64) * MEMBER_BYTES;
        nodes * self.a_second(self.bytes + framed) + nodes * looked_at as f64 / lists
    }

    /// How often a node reads in a second, at most: whenever there is news, but not more often than
    /// its share allows.
    fn readings(&self) -> f64 {
        let pause = self.share().read_interval().as_secs_f64();
        let lists = self.share().members_interval(LISTS).as_secs_f64();
        (1.0 / pause).min(self.a_second(self.entries) + 1.0 / lists)
    }

    /// What the store receives in a second: cursors, renewals, changes.
    pub(crate) fn received(&self) -> f64 {
        let nodes = self.nodes as f64;
        let framed = self.entries * (ENTRY_FRAMING + LOG_FRAMING);
        nodes * nodes * CURSOR_BYTES as f64 * self.readings()
            + nodes * MEMBER_BYTES as f64 / RENEWALS
            + self.a_second(self.bytes + framed)
    }
}

/// Checks what was exchanged with the store.
pub(crate) fn traffic(work: &Work) -> Result<(), String> {
    let change = work.bytes_a_change();
    if !CHANGE.contains(&change) {
        return Err(format!("{change:.1} bytes a change, {CHANGE:?} are stated"));
    }
    let (sent, received) = (
        work.a_second(work.traffic.answered),
        work.a_second(work.traffic.asked),
    );
    for (what, measured, formula) in [
        ("sends", sent, work.sent()),
        ("receives", received, work.received()),
    ] {
        if measured > OVER * formula || measured < UNDER * formula {
            return Err(format!(
                "the store {what} {measured:.0} bytes a second, the formula says {formula:.0}"
            ));
        }
    }
    Ok(())
}

/// Checks one node's snapshot.
pub(crate) fn memory(stats: &SnapshotStats) -> Result<(), String> {
    let formula = SNAPSHOT_BYTES + REPLICA_BYTES * stats.replicas as f64;
    if stats.bytes as f64 > formula {
        return Err(format!(
            "a snapshot of {} replicas takes {} bytes, the formula says {formula:.0}",
            stats.replicas, stats.bytes
        ));
    }
    Ok(())
}
