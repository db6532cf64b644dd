//! Tests of reading an instance's counters.

use super::*;

const TEXT: &str = r#"# HELP vllm:prefix_cache_hits_total Prefix cache hits.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 100.0
vllm:prefix_cache_hits_total{engine="1",model_name="tiny"} 20.0
vllm:prefix_cache_hits_created{engine="0",model_name="tiny"} 1.7953986155575907e+09
vllm:external_prefix_cache_hits_total 896
vllm:prompt_tokens_by_source_total{engine="0",model_name="a{b,c}=",source="local_compute"} 104.0
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer",model_name="x"} 8.96e2
nonsense
"#;

#[test]
fn engines_are_added_and_sources_told_apart() {
    let counts = Counts::parse(TEXT);
    assert_eq!(counts.get(ENGINE_HITS), Some(120.0));
    assert_eq!(counts.get(CONNECTOR_HITS), Some(896.0));
    assert_eq!(counts.get(OWN_NODE_HITS), None);
    assert_eq!(counts.by_source("external_kv_transfer"), Some(896.0));
    assert_eq!(counts.by_source("local_compute"), Some(104.0));
    assert_eq!(counts.by_source("local_cache_hit"), None);
}

#[test]
fn only_what_was_counted_meanwhile_is_told() {
    let before =
        Counts::parse("vllm:prefix_cache_hits_total 100\nvllm:external_prefix_cache_hits_total 9");
    // The second counter began anew.
    let after =
        Counts::parse("vllm:prefix_cache_hits_total 130\nvllm:external_prefix_cache_hits_total 4");
    let grown = after.since(&before);
    assert_eq!(grown.get(ENGINE_HITS), Some(30.0));
    assert_eq!(grown.get(CONNECTOR_HITS), Some(4.0));
}
