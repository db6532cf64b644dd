//! Tests of the figures: quantiles, sums over instances, what is not told.

use super::*;

fn answer(millis: u64) -> Answer {
    Answer {
        tokens: vec![1, 2],
        first_token: Duration::from_millis(millis),
        total: Duration::from_millis(2 * millis),
        prompt_tokens: 100,
        answer_tokens: 2,
        cached_tokens: None,
        node_tokens: None,
    }
}

fn value(report: &Report, name: &str) -> Option<f64> {
    let rows = report.rows();
    rows.iter()
        .find(|row| row.name == name)
        .map(|row| row.value)
}

#[test]
fn quantiles_are_of_all_instances() {
    let mut report = Report::new([1, 2].into_iter());
    for millis in 1..=100 {
        let traffic = &mut report.instances[usize::from(millis > 60)];
        traffic.requests += 1;
        traffic.add(&answer(millis));
    }
    report.seconds = 10.0;
    let value = |name| value(&report, name).unwrap();
    assert_eq!(value("time to first token, mean"), 50.5);
    assert_eq!(value("time to first token, p50"), 50.0);
    assert_eq!(value("time to first token, p99"), 99.0);
    assert_eq!(value("end to end, p95"), 190.0);
    assert_eq!(value("answer tokens"), 20.0);
    assert_eq!(value("prompt tokens"), 1000.0);
    assert_eq!(value("port 1: share"), 60.0);
    assert_eq!(value("port 2: time to first token, p50"), 80.0);
}

#[test]
fn prompts_are_told_by_source_and_instance() {
    let mut report = Report::new([1, 2].into_iter());
    for traffic in &mut report.instances {
        traffic.requests += 1;
        traffic.add(&answer(1));
    }
    assert_eq!(value(&report, "hit rate"), None);
    assert_eq!(value(&report, "counters disagree by"), None);
    assert!(report.show().contains("tell no sources"));
    let text = "vllm:prefix_cache_hits_total 30\nvllm:external_prefix_cache_hits_total 20\n\
                vllm:flexkv_hit_tokens_local_total 5\nvllm:flexkv_hit_tokens_remote_total 15\n";
    report.instances[0].counts = Some(Counts::parse("vllm:prefix_cache_hits_total 10"));
    report.instances[1].counts = Some(Counts::parse(text));
    assert_eq!(value(&report, "hit rate"), Some(30.0));
    assert_eq!(value(&report, "port 1: hit rate"), Some(10.0));
    assert_eq!(value(&report, "port 2: hit rate"), Some(50.0));
    assert_eq!(value(&report, "prompt tokens, engine memory"), Some(40.0));
    assert_eq!(value(&report, "prompt tokens, other nodes"), Some(15.0));
    assert_eq!(value(&report, "prompt tokens, connector"), None);
    assert_eq!(value(&report, "prompt tokens, computed"), Some(140.0));
    let share = value(&report, "share of prompt tokens, other nodes");
    assert_eq!(share, Some(7.5));
    let computed = value(&report, "port 1: prompt tokens, computed");
    assert_eq!(computed, Some(90.0));
    assert_eq!(value(&report, "port 1: prompt tokens, own node"), None);
    assert_eq!(value(&report, "counters disagree by"), Some(0.0));
    assert!(report.show().contains("all who tell these numbers agree"));

    report.instances[1].told.node_tokens = Some(16);
    assert_eq!(value(&report, "counters disagree by"), Some(4.0));
    let said = "counters disagree at port 2: nodes: connector tells 20, responses 16";
    assert!(report.show().contains(said), "{}", report.show());
}

#[test]
fn failures_are_counted_by_reason() {
    let mut report = Report::new([7].into_iter());
    report.instances[0].requests = 3;
    report.instances[0].failed = 3;
    for reason in ["a", "b", "a"] {
        report.add_failure(7, &Failure::Broken(reason.to_owned()));
    }
    assert_eq!(report.failures(), "2 x port 7: a\n1 x port 7: b");
    assert_eq!(value(&report, "failed"), Some(3.0));
    assert_eq!(value(&report, "time to first token, p50"), Some(0.0));
    for number in 0..100 {
        report.add_failure(7, &Failure::Broken(number.to_string()));
    }
    assert!(report.failures().contains("x others"));
}
