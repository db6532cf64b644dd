//! What a run comes to: counts and times of many outcomes, as a table for people and JSON for
//! scripts. Knows nothing of how the run was made.

use std::time::Duration;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, LineStyle, Table};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::engine::Outcome;
use crate::units::{show_bytes, show_count};

/// The longest time that is told apart from longer ones, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// Many durations of one thing, with three digits each.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        Self(histogram.unwrap_or_else(|_| unreachable!("a range as the crate's own examples have")))
    }
}

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(LONGEST);
        self.0.saturating_record(nanos);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        let added = self.0.add(&other.0);
        added.unwrap_or_else(|_| unreachable!("all histograms here have the same range"));
    }

    /// The time, in us, that the share `quantile` of all does not exceed.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Adds outcomes up.
pub struct Tally {
    block_bytes: u64,
    requests: u64,
    blocks: u64,
    hit: u64,
    local: u64,
    remote: u64,
    verified: u64,
    corrupt: u64,
    stored: u64,
    fetched_within: Duration,
    lookups: Times,
}

/// The sum of many outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Prompts processed.
    pub requests: u64,
    /// Their blocks.
    pub blocks: u64,
    /// Blocks that engines got from the cache.
    pub hit_blocks: u64,
    /// The share of blocks that engines got from the cache.
    pub hit_rate: f64,
    /// Of these, blocks of the engine's own node.
    pub local_hit_blocks: u64,
    /// Of these, blocks of other nodes.
    pub remote_hit_blocks: u64,
    /// Blocks got, checked byte for byte, and right.
    pub verified_blocks: u64,
    /// Blocks got and wrong.
    pub corrupt_blocks: u64,
    /// Blocks computed and taken by the cache.
    pub stored_blocks: u64,
    /// Median time of a lookup, as the engine sees it.
    pub lookup_us_p50: f64,
    /// The time that 99 of 100 lookups stay below.
    pub lookup_us_p99: f64,
    /// Bytes that came from other nodes.
    pub fetched_bytes: u64,
    /// GB/s of a load that needs other nodes, verification included, as one engine sees it.
    pub fetch_gb_per_second: Option<f64>,
}

impl Tally {
    /// Nothing yet; blocks are of `block_bytes`.
    pub fn new(block_bytes: usize) -> Self {
        Self {
            block_bytes: block_bytes as u64,
            requests: 0,
            blocks: 0,
            hit: 0,
            local: 0,
            remote: 0,
            verified: 0,
            corrupt: 0,
            stored: 0,
            fetched_within: Duration::ZERO,
            lookups: Times::default(),
        }
    }

    /// Adds the outcome of one prompt.
    pub fn add(&mut self, outcome: &Outcome) {
        self.requests += 1;
        self.blocks += outcome.blocks as u64;
        self.hit += (outcome.local + outcome.remote) as u64;
        self.local += outcome.local as u64;
        self.remote += outcome.remote as u64;
        self.verified += outcome.verified as u64;
        self.corrupt += outcome.corrupt as u64;
        self.stored += outcome.stored as u64;
        if outcome.remote > 0 {
            self.fetched_within += outcome.load;
        }
        if outcome.blocks > 0 {
            self.lookups.add(outcome.lookup);
        }
    }

    /// Adds a prompt of `blocks` blocks that had no cache at all.
    pub fn add_uncached(&mut self, blocks: usize) {
        self.requests += 1;
        self.blocks += blocks as u64;
    }

    /// The share of blocks got from the cache so far.
    pub fn hit_rate(&self) -> f64 {
        self.hit as f64 / self.blocks.max(1) as f64
    }

    /// All that was added.
    pub fn summary(&self) -> Summary {
        let fetched_bytes = self.remote * self.block_bytes;
        let seconds = self.fetched_within.as_secs_f64();
        Summary {
            requests: self.requests,
            blocks: self.blocks,
            hit_blocks: self.hit,
            hit_rate: self.hit_rate(),
            local_hit_blocks: self.local,
            remote_hit_blocks: self.remote,
            verified_blocks: self.verified,
            corrupt_blocks: self.corrupt,
            stored_blocks: self.stored,
            lookup_us_p50: self.lookups.micros(0.5),
            lookup_us_p99: self.lookups.micros(0.99),
            fetched_bytes,
            fetch_gb_per_second: (seconds > 0.0).then(|| fetched_bytes as f64 / 1e9 / seconds),
        }
    }
}

impl Summary {
    /// The rows of a table: what, and how much.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let rate = self.fetch_gb_per_second;
        vec![
            ("requests", show_count(self.requests)),
            ("blocks looked up", show_count(self.blocks)),
            ("hit rate", percent(self.hit_rate)),
            ("blocks from own node", show_count(self.local_hit_blocks)),
            (
                "blocks from other nodes",
                show_count(self.remote_hit_blocks),
            ),
            ("bytes moved between nodes", show_bytes(self.fetched_bytes)),
            (
                "lookup p50 / p99",
                format!("{:.0} / {:.0} us", self.lookup_us_p50, self.lookup_us_p99),
            ),
            (
                "fetch rate, as one engine sees it",
                rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2} GB/s")),
            ),
            ("blocks verified", show_count(self.verified_blocks)),
            ("blocks corrupt", show_count(self.corrupt_blocks)),
        ]
    }
}

/// `share` as people write it.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A table of `header` and `rows`, numbers to the right.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A progress bar on standard error, which shows itself only on a terminal.
pub fn progress(length: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:>24} [{bar:40}] {human_pos}/{human_len} {elapsed} {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length)
        .with_style(style)
        .with_prefix(what.to_owned())
}

#[cfg(test)]
mod tests;
