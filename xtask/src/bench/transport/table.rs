//! What was measured, as one table with ratios. Knows nothing of how it was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A size and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    size: u64,
    batch: u64,
}

impl Cell {
    /// Blocks of `size` bytes, `batch` at once.
    pub(super) fn new(size: u64, batch: u64) -> Self {
        Self { size, batch }
    }

    fn name(self) -> String {
        format!("{} KiB x {}", self.size >> 10, self.batch)
    }
}

/// What one did for one cell in one round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Of what.
    pub(super) cell: Cell,
    /// 10^9 bytes a second.
    pub(super) gb_per_second: f64,
    /// The time that half of the transfers took at most, if they can be told apart.
    pub(super) p50_us: Option<f64>,
    /// The same of 99 in 100.
    pub(super) p99_us: Option<f64>,
    /// CPU seconds of all processes for 10^9 bytes.
    pub(super) cpu_per_gb: f64,
}

impl Sample {
    /// What the script for other libraries wrote.
    pub(super) fn of_line(line: &Value) -> Result<Self> {
        let number = |name: &str| {
            let value = line[name].as_f64();
            value.with_context(|| format!("no `{name}` in {line}"))
        };
        Ok(Self {
            cell: Cell::new(number("size")? as u64, number("batch")? as u64),
            gb_per_second: number("gb_per_second")?,
            p50_us: Some(number("p50_us")?),
            p99_us: Some(number("p99_us")?),
            cpu_per_gb: number("cpu_per_gb")?,
        })
    }
}

/// What `flexkv bench transport` measured: each transport's samples.
pub(super) fn of_rows(rows: &[Value]) -> Result<Vec<(String, Sample)>> {
    let mut samples = BTreeMap::new();
    for row in rows {
        let name = row["name"].as_str().context("a row without a name")?;
        let value = row["value"].as_f64().context("a row without a value")?;
        let Some((transport, cell, what)) = parts(name) else {
            continue;
        };
        let sample = samples.entry((transport.to_owned(), cell));
        let sample = sample.or_insert_with(|| Sample {
            cell,
            gb_per_second: f64::NAN,
            p50_us: None,
            p99_us: None,
            cpu_per_gb: f64::NAN,
        });
        match what {
            "" => sample.gb_per_second = value,
            "p50" => sample.p50_us = Some(value),
            "p99" => sample.p99_us = Some(value),
            "CPU, both ends" => sample.cpu_per_gb = value,
            _ => {}
        }
    }
    let named = samples.into_iter().map(|((name, _), sample)| {
        let name = match name.as_str() {
            "memcpy" => name,
            _ => format!("flexkv-{name}"),
        };
        (name, sample)
    });
    Ok(named.collect())
}

/// The parts of a row's name, such as `tcp 64.0 KiB x 1 p50`.
fn parts(name: &str) -> Option<(&str, Cell, &str)> {
    let mut words = name.splitn(6, ' ');
    let transport = words.next()?;
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()? {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        _ => return None,
    };
    let batch = words.nth(1)?.parse().ok()?;
    let cell = Cell::new((number * unit) as u64, batch);
    Some((transport, cell, words.next().unwrap_or_default()))
}

/// All that was measured.
#[derive(Default)]
pub(super) struct Table {
    samples: BTreeMap<(String, Cell), Vec<Sample>>,
    failures: BTreeMap<String, String>,
}

impl Table {
    /// Adds what one did in one round.
    pub(super) fn add(&mut self, name: &str, sample: Sample) {
        let key = (name.to_owned(), sample.cell);
        self.samples.entry(key).or_default().push(sample);
    }

    /// Notes why one has nothing to show, or less than others.
    pub(super) fn fail(&mut self, name: &str, reason: &str) {
        let reason = reason.lines().next_back().unwrap_or_default();
        self.failures.insert(name.to_owned(), reason.to_owned());
    }

    /// The table in Markdown, medians of all rounds; ratios are to iperf3 and memcpy of the same run.
    pub(super) fn show(&self, cells: impl Iterator<Item = Cell>) -> String {
        let mut text = String::from(
            "\n| what | | GB/s (min-max) | of iperf3 | of memcpy | p50 us | p99 us | CPU s/GB |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for cell in cells {
            for ((name, _), samples) in self.samples.iter().filter(|((_, c), _)| *c == cell) {
                let rates: Vec<f64> = samples.iter().map(|s| s.gb_per_second).collect();
                let (low, high) = (
                    rates.iter().copied().fold(f64::INFINITY, f64::min),
                    rates.iter().copied().fold(0.0, f64::max),
                );
                let rate = median(rates);
                let of = |other: &str| match self.rate(other, cell) {
                    Some(theirs) if other != name => format!("{:.2}", rate / theirs),
                    _ => String::new(),
                };
                let time = |of: fn(&Sample) -> Option<f64>| {
                    let times: Option<Vec<f64>> = samples.iter().map(of).collect();
                    times.map_or_else(String::new, |times| format!("{:.0}", median(times)))
                };
                let cpu = median(samples.iter().map(|s| s.cpu_per_gb).collect());
                let _ = writeln!(
                    text,
                    "| {} | {name} | {rate:.2} ({low:.2}-{high:.2}) | {} | {} | {} | {} | {cpu:.2} |",
                    cell.name(),
                    of("iperf3"),
                    of("memcpy"),
                    time(|s| s.p50_us),
                    time(|s| s.p99_us),
                );
            }
        }
        for (name, reason) in &self.failures {
            let _ = writeln!(text, "| | {name} | {reason} | | | | | |");
        }
        text
    }

    fn rate(&self, name: &str, cell: Cell) -> Option<f64> {
        let samples = self.samples.get(&(name.to_owned(), cell))?;
        Some(median(samples.iter().map(|s| s.gb_per_second).collect()))
    }
}

/// The middle one; NaN if there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests;
