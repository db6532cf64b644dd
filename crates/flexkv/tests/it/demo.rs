//! `flexkv demo`: nodes gain by sharing, and every byte is right.

use flexkv_redis::local::LocalRedis;

use crate::harness::Home;

const SMALL: &str = "demo --requests 80 --block-bytes 4KiB --node-memory 2MiB --nodes 3";

#[test]
fn a_cluster_reuses_more_than_its_nodes_alone() {
    let home = Home::new();
    let report = home.run(&format!("{SMALL} --json")).json();
    let (alone, cluster) = (&report["alone"], &report["cluster"]);
    assert_eq!(report["nodes"], 3);
    assert_eq!(alone["requests"], 80);
    assert_eq!(
        alone["blocks"], cluster["blocks"],
        "both play the same workload"
    );
    let rate = |phase: &serde_json::Value| phase["hit_rate"].as_f64().unwrap();
    assert!(rate(cluster) > rate(alone) + 0.05, "{alone} {cluster}");
    assert!(
        cluster["remote_hit_blocks"].as_u64() > Some(100),
        "{cluster}"
    );
    assert_eq!(alone["remote_hit_blocks"], 0);
    for phase in [alone, cluster] {
        assert_eq!(phase["corrupt_blocks"], 0);
        assert_eq!(phase["verified_blocks"], phase["hit_blocks"]);
    }
    home.assert_clean();
}

#[test]
fn a_table_shows_it_to_people() {
    let home = Home::new();
    let done = home.run(&format!("{SMALL} --seed 5"));
    assert_eq!(done.code, Some(0), "{}", done.err);
    for part in [
        "every node alone",
        "as a cluster",
        "hit rate",
        "GB/s",
        "seed 5",
    ] {
        assert!(done.out.contains(part), "{part:?} is not in:\n{}", done.out);
    }
    assert_eq!(done.err, "", "a progress bar is for terminals");
}

#[tokio::test]
async fn redis_serves_as_well_as_the_embedded_store() {
    let home = Home::new();
    let redis = LocalRedis::start_with_password("sesame").await.unwrap();
    let report = home
        .run(&format!("{SMALL} --json --redis {}", redis.url()))
        .json();
    assert!(
        report["cluster"]["remote_hit_blocks"].as_u64() > Some(100),
        "{report}"
    );
    assert_eq!(report["cluster"]["corrupt_blocks"], 0);
}
