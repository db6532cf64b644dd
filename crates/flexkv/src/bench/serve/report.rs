//! What sending requests came to: rows for scripts, tables for people. Knows nothing of how they
//! were sent.

use std::collections::BTreeMap;
use std::time::Duration;

use super::request::{Answer, Failure};
use super::scrape::{
    BY_SOURCE, CONNECTOR_HITS, Counts, ENGINE_HITS, OTHER_NODES_HITS, OWN_NODE_HITS,
};
use super::share;
use crate::bench::{Better, Row};
use crate::report::table;
use crate::units::show_count;

/// Kinds of failures that are told apart; others are only counted.
const MOST_FAILURE_KINDS: usize = 20;

/// Where hits can come from, as people and scripts call it, and the counter that tells.
const SOURCES: [(&str, &str); 4] = [
    ("engine memory", ENGINE_HITS),
    ("connector", CONNECTOR_HITS),
    ("own node", OWN_NODE_HITS),
    ("other nodes", OTHER_NODES_HITS),
];

/// What one instance did.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Its port.
    pub port: u16,
    /// Requests sent to it.
    pub requests: u64,
    /// Of these, the failed ones.
    pub failed: u64,
    /// Tokens of the answered prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub answer_tokens: u64,
    /// Prompt tokens that were not computed, if its responses tell.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens that came from the node, if its responses tell.
    pub node_tokens: Option<u64>,
    /// What its metrics counted meanwhile, if it has any.
    pub counts: Option<Counts>,
    first_token: Vec<Duration>,
    total: Vec<Duration>,
}

impl Traffic {
    /// Adds an answer.
    pub fn add(&mut self, answer: &Answer) {
        self.prompt_tokens += answer.prompt_tokens;
        self.answer_tokens += answer.answer_tokens;
        add_known(&mut self.cached_tokens, answer.cached_tokens);
        add_known(&mut self.node_tokens, answer.node_tokens);
        self.first_token.push(answer.first_token);
        self.total.push(answer.total);
    }

    fn counted(&self, name: &str) -> Option<f64> {
        self.counts.as_ref()?.get(name)
    }

    /// Prompt tokens that were not computed, as the metrics tell.
    fn hits(&self) -> Option<f64> {
        let engine = self.counted(ENGINE_HITS);
        let connector = self.counted(CONNECTOR_HITS);
        if engine.is_none() && connector.is_none() {
            return None;
        }
        Some(engine.unwrap_or_default() + connector.unwrap_or_default())
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

    /// The sum of what instances tell, if any does.
    fn told(&self, of: impl Fn(&Traffic) -> Option<f64>) -> Option<f64> {
        let told: Vec<f64> = self.instances.iter().filter_map(of).collect();
        (!told.is_empty()).then(|| told.iter().sum())
    }

    fn times(&self, of: impl Fn(&Traffic) -> &[Duration]) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.instances.iter().flat_map(of).copied().collect();
        times.sort_unstable();
        times
    }

    /// All values, for scripts. What the instances do not tell is left out.
    pub fn rows(&self) -> Vec<Row> {
        let (lower, higher) = (Better::Lower, Better::Higher);
        let prompt = self.sum(|traffic| traffic.prompt_tokens) as f64;
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
        if let Some(hits) = self.told(Traffic::hits) {
            row("hit rate", 100.0 * hits / prompt.max(1.0), "%", higher);
        }
        for (source, counter) in SOURCES {
            if let Some(hits) = self.told(|traffic| traffic.counted(counter)) {
                row(&format!("hits, {source}"), hits, "tokens", higher);
            }
        }
        for (source, tokens) in self.by_source() {
            let better = if source == "local_compute" {
                lower
            } else {
                higher
            };
            row(
                &format!("prompt tokens, {source}"),
                tokens,
                "tokens",
                better,
            );
        }
        for (what, told) in [
            (
                "hits, told by responses",
                self.told(|t| t.cached_tokens.map(|n| n as f64)),
            ),
            (
                "hits of nodes, told by responses",
                self.told(|t| t.node_tokens.map(|n| n as f64)),
            ),
        ] {
            if let Some(tokens) = told {
                row(what, tokens, "tokens", higher);
            }
        }
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
        for (source, counter) in SOURCES {
            if let Some(hits) = traffic.counted(counter) {
                rows.push(row(&format!("hits, {source}"), hits, "tokens", higher));
            }
        }
        rows
    }

    fn by_source(&self) -> BTreeMap<String, f64> {
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for counts in self.instances.iter().filter_map(|t| t.counts.as_ref()) {
            for (source, tokens) in counts.by_source() {
                *sums.entry(source.to_owned()).or_default() += tokens;
            }
        }
        sums
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
        let prompt = self.sum(|traffic| traffic.prompt_tokens) as f64 / self.seconds;
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
        let prompt = self.sum(|traffic| traffic.prompt_tokens) as f64;
        let row = |what: String, tokens: f64| {
            // Counters are whole numbers.
            vec![what, show_count(tokens as u64), share(tokens, prompt)]
        };
        let mut rows = vec![row("all".to_owned(), prompt)];
        for (source, counter) in SOURCES {
            if let Some(hits) = self.told(|traffic| traffic.counted(counter)) {
                rows.push(row(format!("hits, {source}"), hits));
            }
        }
        for (source, tokens) in self.by_source() {
            rows.push(row(format!("{BY_SOURCE}: {source}"), tokens));
        }
        if let Some(tokens) = self.told(|t| t.cached_tokens.map(|n| n as f64)) {
            rows.push(row("hits, told by responses".to_owned(), tokens));
        }
        if rows.len() == 1 {
            rows.push(vec![
                "the instances tell no hits".to_owned(),
                String::new(),
                String::new(),
            ]);
        }
        table(&["prompt tokens", "tokens", "share"], rows)
    }

    fn show_instances(&self) -> String {
        let rows = self.instances.iter().map(|traffic| {
            let mut times = traffic.first_token.clone();
            times.sort_unstable();
            let hits = |counter| {
                let hits = traffic.counted(counter);
                hits.map_or_else(|| "-".to_owned(), |hits| show_count(hits as u64))
            };
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
                show_count(traffic.prompt_tokens),
            ];
            cells.extend(SOURCES.map(|(_, counter)| hits(counter)));
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
        header.extend(SOURCES.map(|(source, _)| source));
        table(&header, rows.collect())
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
