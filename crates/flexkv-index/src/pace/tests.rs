//! A share is what the formulas say.

use super::*;

const MB: u64 = 1_000_000;

fn share(nodes: u32, active: u32) -> Share {
    Share {
        bytes_per_second: 100 * MB,
        nodes,
        active,
    }
}

#[test]
fn pauses_of_a_small_cluster_are_too_short_to_notice() {
    // A batch of 64 blocks is about 600 bytes.
    assert!(share(4, 4).after_publishing(600) < Duration::from_millis(1));
    let interval = Duration::from_secs(2);
    assert_eq!(share(16, 16).members_interval(interval), interval);
    assert!(share(4, 4).read_interval() < Duration::from_micros(100));
}

#[test]
fn all_publishers_together_keep_to_half_of_the_budget() {
    for (nodes, active) in [(10, 1), (10, 10), (300, 7), (1000, 1000)] {
        let share = share(nodes, active);
        let pause = share.after_publishing(850);
        let a_second = f64::from(active) * f64::from(nodes) * 1000.0 / pause.as_secs_f64();
        assert!((49e6..51e6).contains(&a_second), "{nodes}: {a_second}");
    }
}

#[test]
fn requests_of_a_large_cluster_become_rare_and_lists_only_of_a_huge_one() {
    let large = share(1000, 1);
    let interval = Duration::from_secs(2);
    let a_second = 1e6 * CURSOR_BYTES as f64 / large.read_interval().as_secs_f64();
    assert!(a_second < 26e6, "{a_second}");
    assert_eq!(large.members_interval(interval), interval);
    let huge = share(10_000, 1);
    let list = (MEMBERS_LOOKED_AT * MEMBER_BYTES) as f64;
    let a_second = 1e4 * list / huge.members_interval(interval).as_secs_f64();
    assert!(a_second < 13e6, "{a_second}");
}

#[test]
fn nonsense_pauses_for_long_and_overflows_nothing() {
    let none = Share {
        bytes_per_second: 0,
        nodes: u32::MAX,
        active: u32::MAX,
    };
    assert!(none.after_publishing(1 << 20) > Duration::from_secs(3600));
    assert!(none.read_interval() > Duration::from_secs(3600));
}
