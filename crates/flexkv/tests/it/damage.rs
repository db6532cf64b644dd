//! A block whose bytes change in a node's memory: whoever fetches it tells the node, which looks and
//! drops it. Over shared memory and over TCP.

use flexkv_block::Checksum;
use flexkv_ports::{Filled, KvCache as _};
use flexkv_redis::local::LocalRedis;
use rustix::process::Signal;

use crate::harness::{Home, until};
use crate::node::{NodeProcess, keys, load, store};

/// Waits until the node's metrics have this line.
async fn counts(node: &NodeProcess, line: &str) {
    until(line, async || {
        node.metrics().await.lines().any(|found| found == line)
    })
    .await;
}

#[tokio::test]
async fn an_owner_drops_a_block_that_a_reader_found_damaged() {
    for shared_memory in [true, false] {
        let home = Home::new();
        let redis = LocalRedis::start().await.unwrap();
        let more = format!(
            "redis.url = '{}'\nnetwork.shared_memory = {shared_memory}",
            redis.url()
        );
        let (a, b) = (
            NodeProcess::start(&home, "a", &more),
            NodeProcess::start(&home, "b", &more),
        );
        b.sees(1);
        let (at_a, at_b) = (a.attach().await, b.attach().await);
        let keys = keys(1, 4);
        let grant = at_a.store(&keys, 0).await.unwrap();
        let mut filled = Vec::new();
        for (index, slot) in grant.slots.iter().enumerate() {
            let bytes = vec![7; slot.as_ref().unwrap().len()];
            slot.as_ref().unwrap().write(0, &bytes);
            let checksum = Checksum::of(&bytes);
            filled.push(Filled { index, checksum });
        }
        at_a.commit(grant.ticket, &filled).await.unwrap();
        grant.slots[2].as_ref().unwrap().write(99, &[8]);
        until("b loads what is good", async || {
            load(&at_b, &keys).await == (2, 2) || load(&at_b, &keys).await == (2, 0)
        })
        .await;
        until("b no longer looks for the damaged block", async || {
            let hit = at_b.match_prefix(&keys).await.unwrap();
            at_b.release(hit.ticket).await.unwrap();
            hit.blocks == 2
        })
        .await;
        counts(&a, "flexkv_local_corrupt_blocks_total{node=\"a\"} 1").await;
        let confirmed = "flexkv_corrupt_reports_total{node=\"a\",event=\"confirmed\"} 1";
        counts(&a, confirmed).await;
        at_a.release(grant.ticket).await.unwrap();
        let again = at_a.store(&keys, 0).await.unwrap();
        let wanted: Vec<bool> = again.slots.iter().map(Option::is_some).collect();
        assert_eq!(wanted, [false, false, true, false], "only that one is gone");
        at_a.release(again.ticket).await.unwrap();
        store(&at_a, &self::keys(50, 1)).await;
        until("b reads other blocks as before", async || {
            load(&at_b, &self::keys(50, 1)).await.0 == 1
        })
        .await;
        a.end(Signal::TERM).await;
        b.end(Signal::TERM).await;
    }
}
