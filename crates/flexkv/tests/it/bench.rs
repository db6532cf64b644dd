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
