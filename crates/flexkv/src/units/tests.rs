//! Units: what is accepted, what is refused, how numbers are shown.

use super::*;

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("0", Some(0)),
        ("4096", Some(4096)),
        ("64KiB", Some(65_536)),
        (" 2 GiB ", Some(2 << 30)),
        ("2 gb", Some(2_000_000_000)),
        ("12 B", Some(12)),
        ("", None),
        ("GiB", None),
        ("2 G", None),
        ("1.5 GiB", None),
        ("-1", None),
        ("99999999 TiB", None),
    ] {
        assert_eq!(parse_bytes(text).ok(), bytes, "{text:?}");
    }
    assert!(
        parse_bytes("2 G")
            .unwrap_err()
            .contains("`2 G` is not a size")
    );
}

#[test]
fn durations_need_a_unit() {
    for (text, nanos) in [
        ("250 ms", Some(250_000_000)),
        ("10s", Some(10_000_000_000)),
        ("1 min", Some(60_000_000_000)),
        ("7us", Some(7_000)),
        ("10", None),
        ("ten s", None),
    ] {
        assert_eq!(
            parse_duration(text).ok(),
            nanos.map(Duration::from_nanos),
            "{text:?}"
        );
    }
}

#[test]
fn numbers_are_shown_for_people() {
    assert_eq!(show_bytes(1023), "1023 B");
    assert_eq!(show_bytes(1536), "1.5 KiB");
    assert_eq!(show_bytes(3 << 40), "3.0 TiB");
    assert_eq!(show_count(0), "0");
    assert_eq!(show_count(999), "999");
    assert_eq!(show_count(1_234_567), "1,234,567");
}
