//! `flexkv bench`: rows that a script can read.

use crate::harness::Home;

#[test]
fn index_rows_are_complete() {
    let rows = Home::new().run("bench index --blocks 20000 --json").json();
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 10);
    for row in rows {
        let fields: Vec<&str> = row
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut expect = [
            "name",
            "value",
            "unit",
            "better",
            "target",
            "peer",
            "peer_value",
        ];
        expect.sort_unstable();
        assert_eq!(fields, expect);
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        assert!(
            row["better"] == "lower" || row["better"] == "higher",
            "{row}"
        );
    }
    let ratio = rows.iter().find(|row| row["unit"] == "x").unwrap();
    assert_eq!(ratio["target"], 50.0);
}

#[test]
fn a_table_shows_them_to_people() {
    let done = Home::new().run("bench index --blocks 20000");
    for part in ["target", "FlexKV (original)", "full hit, p50", "DashMap"] {
        assert!(done.out.contains(part), "{part:?} is not in:\n{}", done.out);
    }
}

#[test]
fn transports_are_measured_between_two_processes() {
    let few = "--sizes 64KiB --batch 1,4 --time 20ms --rounds 1 --memory 4MiB --json";
    let rows = Home::new().run(&format!("bench transport {few}")).json();
    let rows = rows.as_array().unwrap();
    for name in [
        "memcpy 64.0 KiB x 4",
        "shm 64.0 KiB x 4 of memcpy",
        "shm 64.0 KiB x 1 p50",
        "tcp 64.0 KiB x 1 p99",
        "tcp 64.0 KiB x 4 CPU, both ends",
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no row `{name}` in {rows:?}"));
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn a_distant_owner_is_asked_for_with_a_secret() {
    let done = Home::new().run("bench transport --peer 127.0.0.1:1");
    done.assert_failed(2, &["--peer and --serve need --secret-file"]);
}
