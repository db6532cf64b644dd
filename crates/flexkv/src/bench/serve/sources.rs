//! Where the tokens of an instance's prompts came from, and whether all who tell agree: vLLM, the
//! connector in it, and the responses. Knows nothing of how the counters were got.

use std::collections::BTreeMap;
use std::fmt;

use super::scrape::{
    BY_SOURCE, CONNECTOR_HITS, Counts, ENGINE_HITS, OTHER_NODES_HITS, OWN_NODE_HITS,
};

/// Where the KV of a prompt token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The engine still had it.
    EngineMemory,
    /// The connector, which does not tell from where.
    Connector,
    /// The node that the instance is attached to.
    OwnNode,
    /// Nodes that its node fetched it from.
    OtherNodes,
    /// Nowhere.
    Computed,
}

impl Source {
    /// What people and scripts call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::EngineMemory => "engine memory",
            Self::Connector => "connector",
            Self::OwnNode => "own node",
            Self::OtherNodes => "other nodes",
            Self::Computed => "computed",
        }
    }
}

/// Prompt tokens by source.
pub(super) type Sources = BTreeMap<Source, f64>;

/// What an instance's responses tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tokens of the answered prompts.
    pub prompt_tokens: u64,
    /// Of these, the ones that were not computed, if its responses tell.
    pub cached_tokens: Option<u64>,
    /// Of these, the ones that came from nodes, if its responses tell.
    pub node_tokens: Option<u64>,
}

/// The prompt tokens of an instance by source, as far as it tells. Without vLLM's own count of
/// computed tokens, these are what is left of the prompts.
pub(super) fn sources(counts: &Counts, told: &Told) -> Sources {
    let mut sources = Sources::new();
    let mut add = |source, tokens: Option<f64>| {
        sources.extend(tokens.map(|tokens| (source, tokens)));
    };
    let (own, others) = (counts.get(OWN_NODE_HITS), counts.get(OTHER_NODES_HITS));
    add(Source::EngineMemory, counts.get(ENGINE_HITS));
    add(Source::OwnNode, own);
    add(Source::OtherNodes, others);
    if own.is_none() && others.is_none() {
        add(Source::Connector, counts.get(CONNECTOR_HITS));
    }
    if !sources.is_empty() {
        let hits: f64 = sources.values().sum();
        let left = (told.prompt_tokens as f64 - hits).max(0.0);
        let computed = counts.by_source("local_compute").unwrap_or(left);
        sources.insert(Source::Computed, computed);
    }
    sources
}

/// The part of the prompt tokens in `sources` that was not computed.
pub(super) fn hits(sources: &Sources) -> f64 {
    let hits = sources.iter().filter(|(at, _)| **at != Source::Computed);
    hits.map(|(_, tokens)| tokens).sum()
}

/// Two who tell the same number of tokens, or should.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Comparison {
    what: &'static str,
    one: (&'static str, f64),
    other: (&'static str, f64),
}

impl Comparison {
    /// By how much they differ.
    pub(super) fn difference(&self) -> f64 {
        (self.one.1 - self.other.1).abs()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, one, other } = self;
        write!(
            f,
            "{what}: {} tells {}, {} {}",
            one.0, one.1, other.0, other.1
        )
    }
}

/// All numbers that are told twice.
pub(super) fn comparisons(counts: &Counts, told: &Told) -> Vec<Comparison> {
    let sum = |one: Option<f64>, other: Option<f64>| Some(one? + other?);
    let engine = counts.get(ENGINE_HITS);
    let connector = counts.get(CONNECTOR_HITS);
    let nodes = sum(counts.get(OWN_NODE_HITS), counts.get(OTHER_NODES_HITS));
    let memory = counts.by_source("local_cache_hit");
    let external = counts.by_source("external_kv_transfer");
    let computed = counts.by_source("local_compute");
    let all = sum(sum(memory, external), computed);
    let prompts = all.and(Some(told.prompt_tokens as f64));
    let cached = told.cached_tokens.map(|tokens| tokens as f64);
    let brought = told.node_tokens.map(|tokens| tokens as f64);
    let pairs = [
        ("all prompts", (BY_SOURCE, all), ("responses", prompts)),
        ("engine memory", (ENGINE_HITS, engine), (BY_SOURCE, memory)),
        (
            "connector",
            (CONNECTOR_HITS, connector),
            (BY_SOURCE, external),
        ),
        ("connector", (CONNECTOR_HITS, connector), ("nodes", nodes)),
        ("nodes", ("connector", nodes), ("responses", brought)),
        (
            "all hits",
            ("vLLM", sum(engine, connector)),
            ("responses", cached),
        ),
    ];
    let told_twice = |(what, one, other): (_, (_, Option<f64>), (_, Option<f64>))| {
        let (one, other) = ((one.0, one.1?), (other.0, other.1?));
        Some(Comparison { what, one, other })
    };
    pairs.into_iter().filter_map(told_twice).collect()
}

#[cfg(test)]
mod tests;
