//! The table: what is read is what was written, and ratios are those of the same cell.

use serde_json::json;

use super::*;

fn line(size: u64, batch: u64, rate: f64) -> Value {
    json!({
        "size": size, "batch": batch, "gb_per_second": rate,
        "p50_us": 10.0, "p99_us": 20.0, "cpu_per_gb": 0.5,
    })
}

#[test]
fn rows_of_the_command_are_understood() {
    let row = |name: &str, value: f64| json!({"name": name, "value": value});
    let rows = [
        row("tcp 64.0 KiB x 1", 1.5),
        row("tcp 64.0 KiB x 1 of memcpy", 0.5),
        row("tcp 64.0 KiB x 1 p50", 38.0),
        row("tcp 64.0 KiB x 1 p99", 90.0),
        row("tcp 64.0 KiB x 1 CPU, both ends", 0.7),
        row("memcpy 1.0 MiB x 32", 4.0),
    ];
    let samples = of_rows(&rows).expect("rows");
    let names: Vec<_> = samples.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["memcpy", "flexkv-tcp"]);
    assert_eq!(samples[0].1.cell, Cell::new(1 << 20, 32));
    let tcp = Sample {
        cell: Cell::new(64 << 10, 1),
        gb_per_second: 1.5,
        p50_us: Some(38.0),
        p99_us: Some(90.0),
        cpu_per_gb: 0.7,
    };
    assert_eq!(samples[1].1, tcp);
}

#[test]
fn a_row_has_the_median_the_spread_and_ratios_of_its_cell() {
    let mut table = Table::default();
    for rate in [3.0, 1.0, 2.0] {
        let sample = Sample::of_line(&line(1 << 20, 32, rate)).expect("a sample");
        table.add("flexkv-tcp", sample);
    }
    for (size, rate) in [(1 << 20, 4.0), (64 << 10, 100.0)] {
        let sample = Sample::of_line(&line(size, 32, rate)).expect("a sample");
        table.add("iperf3", sample);
    }
    table.fail("mooncake", "first line\nno such wheel");
    let text = table.show([Cell::new(1 << 20, 32)].into_iter());
    let rows: Vec<_> = text.lines().skip(3).collect();
    assert_eq!(
        rows,
        [
            "| 1024 KiB x 32 | flexkv-tcp | 2.00 (1.00-3.00) | 0.50 |  | 10 | 20 | 0.50 |",
            "| 1024 KiB x 32 | iperf3 | 4.00 (4.00-4.00) |  |  | 10 | 20 | 0.50 |",
            "| | mooncake | no such wheel | | | | | |",
        ]
    );
}

#[test]
fn a_line_that_lacks_a_value_is_an_error() {
    let error = Sample::of_line(&json!({"size": 1})).expect_err("refused");
    assert!(error.to_string().contains("no `batch`"), "{error}");
}
