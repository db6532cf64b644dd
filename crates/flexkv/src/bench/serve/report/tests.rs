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
fn hits_are_told_by_source_and_instance() {
    let mut report = Report::new([1, 2].into_iter());
    for traffic in &mut report.instances {
        traffic.requests += 1;
        traffic.add(&answer(1));
    }
    assert_eq!(value(&report, "hit rate"), None);
    assert!(report.show().contains("tell no hits"));
    let text = "vllm:prefix_cache_hits_total 30\nvllm:external_prefix_cache_hits_total 20\n\
                vllm:flexkv_hit_tokens_remote_total 15\n";
    report.instances[1].counts = Some(Counts::parse(text));
    assert_eq!(value(&report, "hit rate"), Some(25.0));
    assert_eq!(value(&report, "hits, other nodes"), Some(15.0));
    assert_eq!(value(&report, "hits, own node"), None);
    assert_eq!(value(&report, "port 2: hits, connector"), Some(20.0));
    assert_eq!(value(&report, "port 1: hits, connector"), None);
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
