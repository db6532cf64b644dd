//! What a block costs: work requests, completions, registrations, counted at the device's door.

use crate::support::{BYTES, Owner, Reader, all_fetched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_side_by_side_cost_little_more_than_a_work_request_each() {
    let owner = Owner::with(100, BYTES);
    let reader = Reader::new(100, BYTES);
    let endpoint = owner.server.endpoint();
    for round in 1..=3 {
        assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
        let counts = reader.transport.counts();
        assert_eq!(counts.blocks, 100 * round);
        // Batches of 64 and 36: a read for each payload, one for all descriptors before, one after.
        assert_eq!(counts.work_requests, (100 + 2 * 2) * round);
        assert_eq!((counts.posts, counts.completions), (2 * round, 2 * round));
        // The arena, and the connection's scratch memory; none for a block.
        assert_eq!((counts.registrations, counts.connections), (2, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_far_apart_cost_three_work_requests_each() {
    let owner = Owner::with(100, 4096);
    let reader = Reader::new(100, 4096);
    let apart: Vec<_> = owner.stored.iter().copied().step_by(9).collect();
    assert!(all_fetched(
        &reader.fetch(&owner.server.endpoint(), &apart).await
    ));
    let counts = reader.transport.counts();
    assert_eq!((counts.blocks, counts.work_requests), (12, 36));
    assert_eq!((counts.posts, counts.completions), (1, 1));
}
