//! Measurements that a user can repeat, in rows that a script can compare.
//!
//! Each benchmark measures its naive baseline in the same run. Knows nothing of how rows are shown.

pub mod index;
pub mod serve;
pub mod ssd;
pub mod store;
pub mod transport;

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::Instant;

use crate::report::Times;

/// Which way a value should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured; stays the same from version to version.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Which way it should go.
    pub better: Better,
    /// What this project wants.
    pub target: Option<f64>,
    /// Whom to compare with.
    pub peer: Option<&'static str>,
    /// What they have.
    pub peer_value: Option<f64>,
}

impl Row {
    /// A value that nobody set a target for.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, better: Better) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            better,
            target: None,
            peer: None,
            peer_value: None,
        }
    }

    /// The same with a target.
    #[must_use]
    pub fn target(mut self, target: f64) -> Self {
        self.target = Some(target);
        self
    }

    /// The same with a peer's value.
    #[must_use]
    pub fn peer(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some(peer);
        self.peer_value = Some(value);
        self
    }
}

/// Does `work` `times` times after a tenth as many that do not count. `prepare` makes each one's
/// input, untimed.
fn time<T>(times: usize, mut prepare: impl FnMut(usize) -> T, mut work: impl FnMut(T)) -> Times {
    let mut measured = Times::default();
    let warm_up = times / 10;
    for i in 0..warm_up + times {
        let input = prepare(i);
        let began = Instant::now();
        work(input);
        let took = began.elapsed();
        if i >= warm_up {
            measured.add(took);
        }
    }
    measured
}

/// CPU time that all threads of this process and of process `pid` have used.
fn cpu(pid: Option<u32>) -> Result<Duration> {
    let others = pid.map_or(Ok(Duration::ZERO), cpu_of)?;
    Ok(cpu_of(std::process::id())? + others)
}

/// CPU time that all threads of a process have used, as the scheduler counts it. Threads that have
/// ended meanwhile are missing; those that carry data stay.
fn cpu_of(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    let folder = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    for task in tasks {
        let file = task?.path().join("schedstat");
        // The thread may have ended since it was listed.
        nanos += first_number(&std::fs::read_to_string(file).unwrap_or_default());
    }
    Ok(Duration::from_nanos(nanos))
}

/// CPU time that this thread has used.
fn cpu_of_thread() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat");
    let text = text.context("cannot read this thread's time")?;
    Ok(Duration::from_nanos(first_number(&text)))
}

fn first_number(text: &str) -> u64 {
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(0)
}

/// The middle one of the values; NaN if there are none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
