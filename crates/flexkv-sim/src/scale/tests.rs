//! A larger cluster: it keeps to its budget, and a small one is as quick as without any.

use super::*;

fn options(nodes: usize, store_bytes_per_second: u64) -> ScaleOptions {
    ScaleOptions {
        seed: 1,
        nodes,
        active: nodes,
        blocks_per_second: 80,
        slots: 64,
        store_bytes_per_second,
        measured: Duration::from_secs(20),
    }
}

/// Runs the cluster under load; bytes a second with the store, longest interval, longest time until a
/// change is seen.
fn under_load(options: ScaleOptions) -> (f64, Duration, f64) {
    runtime().block_on(async {
        let mut large = Large::new(options);
        large.join().await.expect("all see all");
        let work = large.work();
        sleep(options.measured).await;
        let (before, began) = (large.cluster.store.traffic(), Instant::now());
        let seen = large.probes().await.expect("all is seen");
        sleep(Duration::from_secs(10)).await;
        let spent = large.cluster.store.traffic().since(&before);
        let a_second = (spent.asked + spent.answered) as f64 / seconds(began);
        let live = large.cluster.live();
        let intervals = live
            .iter()
            .map(|(_, node)| node.sync_stats().batch_interval);
        let longest = intervals.max().expect("there are nodes");
        work.abort();
        (a_second, longest, seen.longest)
    })
}

#[test]
fn intervals_grow_until_the_budget_is_kept() {
    let (free, quick, _) = under_load(options(12, 1_000_000_000));
    assert_eq!(quick, Duration::from_millis(2));
    // What the blocks alone take; framing and requests are the rest.
    let blocks = 12.0 * 12.0 * 80.0 * 18.0;
    let budget = blocks * 3.0;
    assert!(free > 1.3 * budget, "{free} needs no budget of {budget}");
    let (kept, slow, _) = under_load(options(12, budget as u64));
    assert!(kept < budget, "{kept} of {budget}");
    assert!(slow > 20 * quick, "{slow:?}");
}

#[test]
fn four_nodes_see_changes_as_soon_as_without_a_budget() {
    let (_, interval, seen) = under_load(options(4, 100_000_000));
    assert_eq!(interval, Duration::from_millis(2));
    assert!(seen <= 0.020, "{seen} s");
}

#[test]
fn a_large_cluster_is_measured() {
    // What `--scale 1000` does, with a tenth of the nodes and of the budget.
    let lines = scale(ScaleOptions {
        active: 10,
        blocks_per_second: 10,
        slots: 16,
        measured: Duration::from_secs(5),
        ..options(100, 10_000_000)
    });
    let lines = lines.expect("it works");
    let said = lines.join("\n");
    for what in [
        "all see all",
        "a newcomer sees all",
        "MB/s out",
        "seen elsewhere",
        "largest snapshot",
        "forgotten by all",
        "has all leases",
        "all know exactly what all hold",
    ] {
        assert!(said.contains(what), "{said}");
    }
}
