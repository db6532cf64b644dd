//! `flexkv bench`: rows that a script can read.

use flexkv_redis::local::LocalRedis;

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
        "checksum 64.0 KiB in cache",
        "checksum 64.0 KiB in memory",
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no row `{name}` in {rows:?}"));
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn blocks_are_striped_over_processes_of_which_one_is_slow() {
    let few = "--striped --sizes 256KiB --rounds 1 --memory 16MiB --json";
    let rows = Home::new().run(&format!("bench transport {few}")).json();
    let rows = rows.as_array().unwrap();
    for (name, target) in [
        ("striped 256.0 KiB, 3 owners", None),
        ("striped 256.0 KiB, and one of 1 % of their speed", None),
        ("striped 256.0 KiB, of the three", Some(0.9)),
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no row `{name}` in {rows:?}"));
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["target"].as_f64(), target, "{row}");
    }
}

#[test]
fn a_distant_owner_is_asked_for_with_a_secret() {
    let done = Home::new().run("bench transport --peer 127.0.0.1:1");
    done.assert_failed(2, &["--peer and --serve need --secret-file"]);
}

#[tokio::test]
async fn a_store_is_measured_and_left_empty() {
    let redis = LocalRedis::start().await.unwrap();
    let (home, url) = (Home::new(), redis.url());
    let args = format!("bench store --redis {url} --blocks 20000 --watch 2s --json");
    let rows = home.run(&args).json();
    let rows = rows.as_array().unwrap();
    for (name, target) in [
        ("publish, per block", Some(0.5)),
        ("longest hold of the node's lock meanwhile", Some(5.0)),
        ("all such holds", None),
        ("a newcomer's snapshot", Some(1.2)),
        ("memory in Redis, per block", Some(20.0)),
        ("stored to visible on others, p50", None),
        ("stored to visible on others, p99", Some(20.0)),
        (
            "commands of an idle node, those in scripts included",
            Some(2.0),
        ),
    ] {
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no row `{name}` in {rows:?}"));
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["target"].as_f64(), target, "{row}");
    }
    let scripts = rows
        .iter()
        .find(|row| row["name"] == "scripts of an idle node");
    assert!(scripts.unwrap()["value"].as_f64().unwrap() >= 0.0);
    home.assert_clean();
}

#[tokio::test]
async fn followers_cost_what_the_formulas_say() {
    let redis = LocalRedis::start().await.unwrap();
    let (home, url) = (Home::new(), redis.url());
    let args = format!("bench store --redis {url} --followers 2,3 --watch 2s");
    let rows = home.run(&format!("{args} --json")).json();
    let rows = rows.as_array().unwrap();
    for nodes in [2, 3] {
        for (name, most) in [
            ("store sends", 2.0),
            ("store receives", 2.0),
            ("commands", 2.0),
            ("store memory, at most", 1.0),
            ("processor of a follower", f64::MAX),
        ] {
            let found = rows
                .iter()
                .filter(|row| row["name"] == name && row["nodes"] == nodes);
            let found: Vec<_> = found.collect();
            assert_eq!(found.len(), 2, "one for each load: {rows:?}");
            for row in found {
                let [measured, formula, ratio, changes] =
                    ["measured", "formula", "ratio", "changes"].map(|f| row[f].as_f64().unwrap());
                assert!(measured > 0.0 && changes > 0.0, "{row}");
                assert!((ratio - measured / formula).abs() < 1e-9, "{row}");
                assert!(ratio <= most, "{row}");
            }
        }
    }
    home.assert_clean();
    home.run(&format!("{args} --blocks 5")).assert_failed(
        2,
        &["'--followers <N,...>' cannot be used with '--blocks <N>'"],
    );
}
