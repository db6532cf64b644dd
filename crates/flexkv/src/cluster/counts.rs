//! What nodes in other processes have counted, read from where they serve their metrics, and added up
//! over the nodes. Knows nothing of what a metric means.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::http::Http;

/// How long a node may take to tell its metrics.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Counters by name, with those labels that are not the node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// The counter `name`, such as `flexkv_evicted_blocks_total{tier="ssd"}`; 0 if nobody has it.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds what a node tells at `url`, if it does.
    pub(super) async fn add(&mut self, url: &str) {
        match Http::default().get(url, TOLD_WITHIN).await {
            Ok((_, text)) => self.add_text(&String::from_utf8_lossy(&text)),
            Err(error) => tracing::warn!(url, %error, "a node does not tell its metrics"),
        }
    }

    fn add_text(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if let Ok(value) = value.parse::<u64>() {
                *self.0.entry(without_node(name)).or_default() += value;
            }
        }
    }
}

/// The name without the label that says which node it is of.
fn without_node(name: &str) -> String {
    let Some((name, labels)) = name.split_once('{') else {
        return name.to_owned();
    };
    let labels = labels.trim_end_matches('}').split(',');
    let rest: Vec<&str> = labels.filter(|it| !it.starts_with("node=")).collect();
    if rest.is_empty() {
        name.to_owned()
    } else {
        format!("{name}{{{}}}", rest.join(","))
    }
}

#[cfg(test)]
mod tests;
