//! Adding up: sums, rates and what people and scripts get to see.

use super::*;

fn outcome(blocks: usize, local: usize, remote: usize) -> Outcome {
    Outcome {
        blocks,
        promised: local + remote,
        verified: local + remote,
        local,
        remote,
        stored: blocks - local - remote,
        lookup: Duration::from_micros(10),
        load: Duration::from_millis(1),
        ..Outcome::default()
    }
}

#[test]
fn outcomes_add_up() {
    let mut tally = Tally::new(1_000_000);
    tally.add(&outcome(10, 2, 3));
    tally.add(&outcome(20, 5, 0));
    tally.add_uncached(10);
    let summary = tally.summary();
    assert_eq!((summary.requests, summary.blocks), (3, 40));
    assert_eq!((summary.hit_blocks, summary.verified_blocks), (10, 10));
    assert_eq!(
        (summary.local_hit_blocks, summary.remote_hit_blocks),
        (7, 3)
    );
    assert_eq!(summary.stored_blocks, 20);
    assert_eq!(summary.fetched_bytes, 3_000_000);
    assert!((summary.hit_rate - 0.25).abs() < 1e-12);
    assert!((summary.lookup_us_p50 - 10.0).abs() < 0.1);
    // 3 MB within 1 ms; the load without remote blocks does not count.
    assert!((summary.fetch_gb_per_second.unwrap() - 3.0).abs() < 1e-9);
}

#[test]
fn times_of_all_sizes_are_told_apart() {
    let mut times = Times::default();
    for nanos in [2, 1_000, 123_456, 5_000_000_000] {
        times.add(Duration::from_nanos(nanos));
    }
    for (quantile, micros) in [(0.25, 0.002), (0.5, 1.0), (0.75, 123.4), (1.0, 5_000_000.0)] {
        let found = times.micros(quantile);
        assert!((found / micros - 1.0).abs() < 0.002, "{quantile}: {found}");
    }
    times.add(Duration::MAX);
    assert!(times.micros(1.0) > 59e6);
}

#[test]
fn nothing_is_no_number() {
    let summary = Tally::new(1).summary();
    assert_eq!(summary.fetch_gb_per_second, None);
    assert!(
        serde_json::to_string(&summary)
            .unwrap()
            .contains("\"hit_rate\":0.0")
    );
}

#[test]
fn tables_show_every_row() {
    let mut tally = Tally::new(1024);
    tally.add(&outcome(4000, 1000, 1000));
    let rows = tally.summary().rows();
    let rows = rows
        .into_iter()
        .map(|(what, much)| vec![what.to_owned(), much]);
    let text = table(&["", "cluster"], rows.collect());
    for part in ["4,000", "50.00 %", "1000.0 KiB", "blocks corrupt"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
