//! Counters of an instance, from its `/metrics`: where the tokens of its prompts came from. Knows
//! nothing of requests.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::sleep;

use crate::http::{BaseUrl, Http};

/// How long an instance may take to tell its metrics.
const SCRAPED_WITHIN: Duration = Duration::from_secs(10);
/// Counters follow their requests at a distance: wait this long between looks, ...
const SETTLE_PAUSE: Duration = Duration::from_millis(300);
/// ... and look so often at most for them to stand still.
const SETTLE_LOOKS: usize = 10;

/// Prompt tokens whose KV the engine still had in its own memory.
pub(super) const ENGINE_HITS: &str = "vllm:prefix_cache_hits_total";
/// Prompt tokens whose KV a connector brought.
pub(super) const CONNECTOR_HITS: &str = "vllm:external_prefix_cache_hits_total";
/// Of these, tokens from the instance's own node.
pub(super) const OWN_NODE_HITS: &str = "vllm:flexkv_hit_tokens_local_total";
/// Of these, tokens from other nodes.
pub(super) const OTHER_NODES_HITS: &str = "vllm:flexkv_hit_tokens_remote_total";
/// Prompt tokens by source, told by the label `source`.
pub(super) const BY_SOURCE: &str = "vllm:prompt_tokens_by_source_total";

const COUNTERS: [&str; 5] = [
    ENGINE_HITS,
    CONNECTOR_HITS,
    OWN_NODE_HITS,
    OTHER_NODES_HITS,
    BY_SOURCE,
];

/// Counters by name; those by source as `name/source`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<String, f64>);

impl Counts {
    /// The counters in Prometheus text, added up over all labels but `source`.
    pub fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            let Some((name, labels, value)) = sample(line) else {
                continue;
            };
            if !COUNTERS.contains(&name) {
                continue;
            }
            let key = match label(labels, "source") {
                Some(source) => format!("{name}/{source}"),
                None => name.to_owned(),
            };
            *counts.0.entry(key).or_default() += value;
        }
        counts
    }

    /// The counter `name`, if the instance has it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Prompt tokens of what vLLM calls `source`, if the instance tells.
    pub fn by_source(&self, source: &str) -> Option<f64> {
        self.get(&format!("{BY_SOURCE}/{source}"))
    }

    /// How much was counted since `before`. A counter that went back began anew.
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(key, now)| {
            let before = before.get(key).unwrap_or_default();
            let grown = if *now < before { *now } else { now - before };
            (key.clone(), grown)
        });
        Self(grown.collect())
    }
}

/// The name, labels and value in a line of Prometheus text.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = rest.rsplit_once('}')?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, "", rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// The value of the label `name`.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    while let Some((key, tail)) = rest.split_once("=\"") {
        let (value, tail) = tail.split_once('"')?;
        if key.trim_start_matches(',').trim() == name {
            return Some(value);
        }
        rest = tail;
    }
    None
}

/// The counters of the instance at `base`, if it tells them.
pub(super) async fn scrape(http: &Http, base: &BaseUrl) -> Option<Counts> {
    let (status, body) = http
        .get(&format!("{base}/metrics"), SCRAPED_WITHIN)
        .await
        .ok()?;
    let text = std::str::from_utf8(&body).ok()?;
    (status == StatusCode::OK).then(|| Counts::parse(text))
}

/// The counters of the instance at `base`, once they stand still.
pub(super) async fn scrape_settled(http: &Http, base: &BaseUrl) -> Option<Counts> {
    let mut last = scrape(http, base).await?;
    for _ in 0..SETTLE_LOOKS {
        sleep(SETTLE_PAUSE).await;
        let now = scrape(http, base).await?;
        if now == last {
            break;
        }
        last = now;
    }
    Some(last)
}

#[cfg(test)]
mod tests;
