//! What sending requests came to: rows for scripts, tables for people. Knows nothing of how they
//! were sent.

use std::collections::BTreeMap;
use std::time::Duration;

use super::request::{Answer, Failure};
use super::scrape::Counts;
use super::share;
use super::sources::{Comparison, Source, Sources, Told, comparisons, hits, sources};
use crate::bench::{Better, Row};
use crate::report::table;
use crate::units::show_count;

/// Kinds of failures that are told apart; others are only counted.
const MOST_FAILURE_KINDS: usize = 20;

/// What one instance did.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Its port.
    pub port: u16,
    /// Requests sent to it.
    pub requests: u64,
    /// Of these, the failed ones.
    pub failed: u64,
    /// Tokens of the answers.
    pub answer_tokens: u64,
    /// What its responses told of prompts.
    pub told: Told,
    /// What its metrics counted meanwhile, if it has any.
    pub counts: Option<Counts>,
    first_token: Vec<Duration>,
    total: Vec<Duration>,
}

impl Traffic {
    /// Adds an answer.
    pub fn add(&mut self, answer: &Answer) {
        self.answer_tokens += answer.answer_tokens;
        self.told.prompt_tokens += answer.prompt_tokens;
        add_known(&mut self.told.cached_tokens, answer.cached_tokens);
        add_known(&mut self.told.node_tokens, answer.node_tokens);
        self.first_token.push(answer.first_token);
        self.total.push(answer.total);
    }

    /// Its prompt tokens by source; nothing if it does not tell.
    fn sources(&self) -> Sources {
        let counts = self.counts.as_ref();
        counts.map_or_else(Sources::new, |counts| sources(counts, &self.told))
    }

    fn comparisons(&self) -> Vec<Comparison> {
        let counts = self.counts.as_ref();
        counts.map_or_else(Vec::new, |counts| comparisons(counts, &self.told))
    }
}

fn add_known(sum: &mut Option<u64>, more: Option<u64>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or_default() + more);
    }
}

/// What all instances did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each instance's part.
    pub instances: Vec<Traffic>,
    /// How long it took.
    pub seconds: f64,
    /// Prompts that had to be made shorter for the model.
    pub cut: u64,
    /// Later turns of conversations that failed before.
    pub not_asked: u64,
    failures: BTreeMap<String, u64>,
}

impl Report {
    /// Nothing yet; the instances are at `ports`.
    pub fn new(ports: impl Iterator<Item = u16>) -> Self {
        let instance = |port| Traffic {
            port,
            ..Traffic::default()
        };
        Self {
            instances: ports.map(instance).collect(),
            seconds: 0.0,
            cut: 0,
            not_asked: 0,
            failures: BTreeMap::new(),
        }
    }

    /// Adds a failed request of the instance at `port`.
    pub fn add_failure(&mut self, port: u16, failure: &Failure) {
        let mut kind = format!("port {port}: {failure}");
        if self.failures.len() >= MOST_FAILURE_KINDS && !self.failures.contains_key(&kind) {
            "others".clone_into(&mut kind);
        }
        *self.failures.entry(kind).or_default() += 1;
    }

    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.sum(|traffic| traffic.failed)
    }

    /// Requests sent.
    pub fn requests(&self) -> u64 {
        self.sum(|traffic| traffic.requests)
    }

    /// For a progress bar: how many failed, if any.
    pub fn failure_note(&self) -> String {
        match self.failed() {
            0 => String::new(),
            failed => format!("{failed} failed"),
        }
    }

    /// Failed requests by instance and reason.
    pub fn failures(&self) -> String {
        let lines = self.failures.iter();
        let lines: Vec<String> = lines
            .map(|(kind, count)| format!("{count} x {kind}"))
            .collect();
        lines.join("\n")
    }

    fn sum(&self, of: impl Fn(&Traffic) -> u64) -> u64 {
        self.instances.iter().map(of).sum()
    }

    /// Prompt tokens by source, of the instances that tell.
    fn sources(&self) -> Sources {
        let mut sums = Sources::new();
        for (source, tokens) in self.instances.iter().flat_map(Traffic::sources) {
            *sums.entry(source).or_default() += tokens;
        }
        sums
    }

    fn times(&self, of: impl Fn(&Traffic) -> &[Duration]) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.instances.iter().flat_map(of).copied().collect();
        times.sort_unstable();
        times
    }

    /// All values, for scripts. What the instances do not tell is left out.
    pub fn rows(&self) -> Vec<Row> {
        let (lower, higher) = (Better::Lower, Better::Higher);
        let prompt = self.sum(|traffic| traffic.told.prompt_tokens) as f64;
        let answer = self.sum(|traffic| traffic.answer_tokens) as f64;
        let answered = self.requests() - self.failed();
        let a_second = |count: f64| count / self.seconds.max(f64::MIN_POSITIVE);
        let mut rows = Vec::new();
        let mut row = |name: &str, value: f64, unit, better| {
            rows.push(Row::new(name, value, unit, better));
        };
        for (what, times) in [
            ("time to first token", self.times(|t| &t.first_token)),
            ("end to end", self.times(|t| &t.total)),
        ] {
            for (which, value) in summary(&times) {
                row(&format!("{what}, {which}"), value, "ms", lower);
            }
        }
        row("answers", a_second(answered as f64), "1/s", higher);
        row("prompt tokens", a_second(prompt), "tokens/s", higher);
        row("answer tokens", a_second(answer), "tokens/s", higher);
        let sources = self.sources();
        rows.extend(source_rows("", &sources));
        for (source, tokens) in &sources {
            let name = format!("share of prompt tokens, {}", source.name());
            let share = 100.0 * tokens / sources.values().sum::<f64>().max(1.0);
            rows.push(Row::new(name, share, "%", better(*source)));
        }
        let compared: Vec<_> = self
            .instances
            .iter()
            .flat_map(Traffic::comparisons)
            .collect();
        if !compared.is_empty() {
            let most = compared
                .iter()
                .map(Comparison::difference)
                .fold(0.0, f64::max);
            let name = "counters disagree by";
            rows.push(Row::new(name, most, "tokens", lower));
        }
        let mut row = |name: &str, value: f64, unit, better| {
            rows.push(Row::new(name, value, unit, better));
        };
        row("cut prompts", self.cut as f64, "requests", lower);
        row("not asked", self.not_asked as f64, "requests", lower);
        rows.push(Row::new("failed", self.failed() as f64, "requests", lower).target(0.0));
        for traffic in &self.instances {
            rows.extend(self.instance_rows(traffic));
        }
        rows
    }

    fn instance_rows(&self, traffic: &Traffic) -> Vec<Row> {
        let row = |what: &str, value, unit, better| {
            Row::new(
                format!("port {}: {what}", traffic.port),
                value,
                unit,
                better,
            )
        };
        let (lower, higher) = (Better::Lower, Better::Higher);
        let all = self.requests().max(1) as f64;
        let share = 100.0 * traffic.requests as f64 / all;
        let mut rows = vec![
            row("requests", traffic.requests as f64, "requests", higher),
            row("share", share, "%", higher),
            row("failed", traffic.failed as f64, "requests", lower),
        ];
        let mut times = traffic.first_token.clone();
        times.sort_unstable();
        for (which, value) in summary(&times) {
            let what = format!("time to first token, {which}");
            rows.push(row(&what, value, "ms", lower));
        }
        let of = format!("port {}: ", traffic.port);
        rows.extend(source_rows(&of, &traffic.sources()));
        rows
    }

    /// Tables for people: times, sources, instances. Why requests failed is told by `failures`.
    pub fn show(&self) -> String {
        let mut parts = vec![
            self.show_times(),
            self.show_sources(),
            self.show_instances(),
        ];
        if self.cut > 0 {
            parts.push(format!(
                "{} prompts were cut to the model's length",
                self.cut
            ));
        }
        if self.not_asked > 0 {
            let lost = self.not_asked;
            parts.push(format!(
                "{lost} turns were not asked, as one before them failed"
            ));
        }
        parts.join("\n\n")
    }

    fn show_times(&self) -> String {
        let cells = |what: &str, times: &[Duration]| {
            let mut cells = vec![what.to_owned()];
            cells.extend(summary(times).map(|(_, value)| format!("{value:.1}")));
            cells
        };
        let rows = vec![
            cells("time to first token", &self.times(|t| &t.first_token)),
            cells("end to end", &self.times(|t| &t.total)),
        ];
        let answered = self.requests() - self.failed();
        let prompt = self.sum(|traffic| traffic.told.prompt_tokens) as f64 / self.seconds;
        let answer = self.sum(|traffic| traffic.answer_tokens) as f64 / self.seconds;
        format!(
            "{}\n{answered} of {} requests answered in {:.1} s; a second: {:.2} answers, \
             {prompt:.0} prompt tokens, {answer:.0} answer tokens",
            table(&["ms", "mean", "p50", "p95", "p99"], rows),
            self.requests(),
            self.seconds,
            answered as f64 / self.seconds,
        )
    }

    fn show_sources(&self) -> String {
        let prompt = self.sum(|traffic| traffic.told.prompt_tokens) as f64;
        let row = |what: String, tokens: f64| {
            // Counters are whole numbers.
            vec![what, show_count(tokens as u64), share(tokens, prompt)]
        };
        let mut rows = vec![row("all".to_owned(), prompt)];
        for (source, tokens) in self.sources() {
            rows.push(row(source.name().to_owned(), tokens));
        }
        if rows.len() == 1 {
            let nothing = "the instances tell no sources".to_owned();
            rows.push(vec![nothing, String::new(), String::new()]);
        }
        let table = table(&["prompt tokens", "tokens", "share"], rows);
        match self.show_comparisons() {
            Some(compared) => format!("{table}\n{compared}"),
            None => table,
        }
    }

    /// Whether all who tell sources agree; nothing if there is nobody to compare with.
    fn show_comparisons(&self) -> Option<String> {
        let of = |traffic: &Traffic| {
            let port = traffic.port;
            let compared = traffic.comparisons().into_iter();
            compared.map(move |each| (port, each)).collect::<Vec<_>>()
        };
        let compared: Vec<(u16, Comparison)> = self.instances.iter().flat_map(of).collect();
        if compared.is_empty() {
            return None;
        }
        let differing = compared.iter().filter(|(_, each)| each.difference() > 0.0);
        let lines: Vec<String> = differing
            .map(|(port, each)| format!("counters disagree at port {port}: {each}"))
            .collect();
        if lines.is_empty() {
            return Some("all who tell these numbers agree".to_owned());
        }
        Some(lines.join("\n"))
    }

    fn show_instances(&self) -> String {
        let all = self.sources();
        let rows = self.instances.iter().map(|traffic| {
            let mut times = traffic.first_token.clone();
            times.sort_unstable();
            let sources = traffic.sources();
            let median = match times.as_slice() {
                [] => "-".to_owned(),
                times => format!("{:.1}", summary(times)[1].1),
            };
            let mut cells = vec![
                traffic.port.to_string(),
                show_count(traffic.requests),
                share(traffic.requests as f64, self.requests() as f64),
                show_count(traffic.failed),
                median,
                show_count(traffic.told.prompt_tokens),
            ];
            let told = |source| {
                let tokens = sources.get(source);
                tokens.map_or_else(|| "-".to_owned(), |tokens| show_count(*tokens as u64))
            };
            cells.extend(all.keys().map(told));
            cells
        });
        let mut header = vec![
            "port",
            "requests",
            "share",
            "failed",
            "TTFT p50",
            "prompt tokens",
        ];
        header.extend(all.keys().map(|source| source.name()));
        table(&header, rows.collect())
    }
}

/// The hit rate and the tokens of each source, `of` an instance or all of them.
fn source_rows(of: &str, sources: &Sources) -> Vec<Row> {
    let mut rows = Vec::new();
    if !sources.is_empty() {
        let rate = 100.0 * hits(sources) / sources.values().sum::<f64>().max(1.0);
        rows.push(Row::new(format!("{of}hit rate"), rate, "%", Better::Higher));
    }
    rows.extend(sources.iter().map(|(source, tokens)| {
        let name = format!("{of}prompt tokens, {}", source.name());
        Row::new(name, *tokens, "tokens", better(*source))
    }));
    rows
}

/// Which way the tokens of `source` should go.
fn better(source: Source) -> Better {
    match source {
        Source::Computed => Better::Lower,
        _ => Better::Higher,
    }
}

/// Mean and quantiles of sorted `times` in ms; zeros if there are none.
fn summary(times: &[Duration]) -> [(&'static str, f64); 4] {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let sum: Duration = times.iter().sum();
    let mean = millis(sum) / times.len().max(1) as f64;
    // The smallest time that this share of all does not exceed.
    let quantile = |share: f64| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times
            .get(rank.saturating_sub(1))
            .copied()
            .map_or(0.0, millis)
    };
    [
        ("mean", mean),
        ("p50", quantile(0.5)),
        ("p95", quantile(0.95)),
        ("p99", quantile(0.99)),
    ]
}

#[cfg(test)]
mod tests;
