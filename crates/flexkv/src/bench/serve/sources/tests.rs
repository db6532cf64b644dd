//! Tests of telling sources apart, and of seeing that counters disagree.

use super::*;

const ENGINE: &str = "vllm:prefix_cache_hits_total 30\n\
    vllm:external_prefix_cache_hits_total 20\n\
    vllm:prompt_tokens_by_source_total{source=\"local_compute\"} 50\n\
    vllm:prompt_tokens_by_source_total{source=\"local_cache_hit\"} 30\n\
    vllm:prompt_tokens_by_source_total{source=\"external_kv_transfer\"} 20\n";
const NODES: &str =
    "vllm:flexkv_hit_tokens_local_total 5\nvllm:flexkv_hit_tokens_remote_total 15\n";

fn told() -> Told {
    Told {
        prompt_tokens: 100,
        cached_tokens: Some(50),
        node_tokens: Some(20),
    }
}

fn named(text: &str) -> Vec<(&'static str, f64)> {
    let sources = sources(&Counts::parse(text), &told());
    sources.into_iter().map(|(at, n)| (at.name(), n)).collect()
}

#[test]
fn a_connector_is_one_source_unless_it_tells_of_nodes() {
    let whole = format!("{ENGINE}{NODES}");
    assert_eq!(
        named(&whole),
        [
            ("engine memory", 30.0),
            ("own node", 5.0),
            ("other nodes", 15.0),
            ("computed", 50.0)
        ]
    );
    assert_eq!(
        named(ENGINE),
        [
            ("engine memory", 30.0),
            ("connector", 20.0),
            ("computed", 50.0)
        ]
    );
    let counts = Counts::parse(&whole);
    assert_eq!(hits(&sources(&counts, &told())), 50.0);
}

#[test]
fn what_is_not_told_to_be_computed_is_what_is_left() {
    assert_eq!(
        named("vllm:prefix_cache_hits_total 30"),
        [("engine memory", 30.0), ("computed", 70.0)]
    );
    assert_eq!(named("process_cpu_seconds_total 3"), []);
}

#[test]
fn numbers_that_are_told_twice_are_compared() {
    let compared = |text: &str, told: &Told| comparisons(&Counts::parse(text), told);
    let whole = format!("{ENGINE}{NODES}");
    let all = compared(&whole, &told());
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|each| each.difference() == 0.0));
    assert_eq!(compared("process_cpu_seconds_total 3", &told()), []);
    let unsaid = Told {
        prompt_tokens: 100,
        ..Told::default()
    };
    assert_eq!(compared(ENGINE, &unsaid).len(), 3);

    let less = whole.replace("remote_total 15", "remote_total 14");
    let differing: Vec<String> = compared(&less, &told())
        .iter()
        .filter(|each| each.difference() == 1.0)
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        differing,
        [
            "connector: vllm:external_prefix_cache_hits_total tells 20, nodes 19",
            "nodes: connector tells 19, responses 20"
        ]
    );
    let more = Told {
        prompt_tokens: 110,
        ..told()
    };
    let differing = compared(&whole, &more);
    let first = differing.first().map(Comparison::difference);
    assert_eq!(first, Some(10.0), "a prompt that vLLM did not count");
}
