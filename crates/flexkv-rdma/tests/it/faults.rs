//! What goes wrong at the owner, on the way and at the reader: each block is right or not there, the
//! buffers come back, nothing hangs, and what can work again does.

use std::time::Duration;

use flexkv_block::{Generation, Location, SlotId, Tier};
use flexkv_ports::{BlockTier as _, Eviction, FetchOutcome, Transport as _, Want};

use crate::proxy::{Change, Proxy};
use crate::support::{
    BYTES, Owner, Reader, all_fetched, all_unreachable, arena, config, eventually, key, put,
    serve_at, store,
};

/// Where the first memory key is in an owner's answer.
const KEY: usize = 128 + 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let owner = Owner::with(8, BYTES);
    let reader = Reader::new(8, BYTES);
    let endpoint = owner.server.endpoint();
    let descriptor = |slot: u32| 4096 + 64 * slot as usize;
    let payload = |slot: u32| {
        owner
            .tier
            .layout()
            .payload_offset(SlotId(slot))
            .expect("a slot")
    };
    // Of slots 0 to 6: the location's slot and generation, both halves of the key, the checksum, and
    // the payload's first and last byte.
    for (slot, offset) in [
        (0, descriptor(0)),
        (1, descriptor(1) + 4),
        (2, descriptor(2) + 8),
        (3, descriptor(3) + 23),
        (4, descriptor(4) + 24),
        (5, payload(5)),
        (6, payload(6) + BYTES - 1),
    ] {
        assert_eq!(owner.stored[slot as usize].0.slot, SlotId(slot));
        owner.flip(offset);
    }
    let got = reader.fetch(&endpoint, &owner.stored).await;
    assert_eq!(
        got[..4],
        [FetchOutcome::Stale; 4],
        "another block, as it seems"
    );
    assert_eq!(
        got[4..7],
        [FetchOutcome::Corrupt; 3],
        "not the bytes that were stored"
    );
    assert!(all_fetched(&got[7..]));
    reader.has_all_buffers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bit_of_a_descriptor_counts() {
    let owner = Owner::with(1, 64);
    let reader = Reader::new(1, 64);
    let endpoint = owner.server.endpoint();
    // The rest of a descriptor is reserved.
    for bit in 0..32 * 8 {
        owner.flip_bit(4096 + bit / 8, bit % 8);
        let got = reader.fetch(&endpoint, &owner.stored).await;
        let expected = if bit < 24 * 8 {
            FetchOutcome::Stale
        } else {
            FetchOutcome::Corrupt
        };
        assert_eq!(got, [expected], "bit {bit}");
        owner.flip_bit(4096 + bit / 8, bit % 8);
    }
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    reader.has_all_buffers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_generation_key_tier_or_slot_is_stale_and_disturbs_nobody() {
    let owner = Owner::with(8, BYTES);
    let reader = Reader::new(8, BYTES);
    let mut wanted = owner.stored.clone();
    assert_eq!(owner.tier.evict(wanted[0].0), Eviction::Done);
    wanted[1].0.generation = Generation::new(2).expect("a generation");
    wanted[2].1 = 77;
    wanted[3].0.tier = Tier::Ssd;
    wanted[4].0.slot = SlotId(8);
    wanted[5].0.slot = SlotId(u32::MAX);
    let got = reader.fetch(&owner.server.endpoint(), &wanted).await;
    assert_eq!(got[..6], [FetchOutcome::Stale; 6]);
    assert!(all_fetched(&got[6..]));
    assert_eq!(owner.stored[0].0.slot, SlotId(0));
    let refilled = put(&owner.tier, 50);
    assert_eq!(refilled.slot, SlotId(0), "the slot that was freed");
    let wanted = [owner.stored[0], (refilled, 50)];
    let got = reader.fetch(&owner.server.endpoint(), &wanted).await;
    assert_eq!(got[0], FetchOutcome::Stale);
    assert!(all_fetched(&got[1..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_memory_key_ends_the_queue_pair_and_the_next_one_works() {
    let owner = Owner::with(4, BYTES);
    let proxy = Proxy::before(owner.server.address()).await;
    let reader = Reader::new(4, BYTES);
    proxy.set(Change::Flip(KEY));
    assert!(all_unreachable(
        &reader.fetch(&proxy.endpoint, &owner.stored).await
    ));
    let reason = reader
        .transport
        .last_refusal(&proxy.endpoint)
        .expect("a reason");
    assert!(reason.contains("cannot read"), "{reason}");
    reader.has_all_buffers().await;
    assert_eq!(reader.transport.connected(), 0);
    proxy.set(Change::Nothing);
    loop {
        // It is left alone for a while after the failure.
        let got = reader.fetch(&proxy.endpoint, &owner.stored).await;
        if all_fetched(&got) {
            break;
        }
        assert!(all_unreachable(&got));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(reader.transport.last_refusal(&proxy.endpoint), None);
    assert_eq!(reader.transport.counts().connections, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_or_damaged_is_refused() {
    let owner = Owner::with(4, BYTES);
    let proxy = Proxy::before(owner.server.address()).await;
    for (change, words) in [
        (Change::Cut(0), "early eof"),
        (Change::Cut(100), "early eof"),
        (Change::Cut(140), "early eof"),
        (Change::Flip(0), "no introduction"),
        (Change::Flip(15), "impossible link"),
        (Change::Flip(60), "header is damaged"),
        (Change::Flip(122), "impossible number of chunks"),
    ] {
        let reader = Reader::new(4, BYTES);
        proxy.set(change);
        assert!(all_unreachable(
            &reader.fetch(&proxy.endpoint, &owner.stored).await
        ));
        let reason = reader
            .transport
            .last_refusal(&proxy.endpoint)
            .expect("a reason");
        assert!(reason.contains(words), "`{reason}` does not say `{words}`");
        reader.has_all_buffers().await;
    }
    eventually("no reader stays", || owner.server.readers() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_starts_anew_at_the_same_address_is_read_anew() {
    let owner = Owner::with(4, BYTES);
    let (endpoint, address) = (owner.server.endpoint(), owner.server.address());
    let reader = Reader::new(4, BYTES);
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    drop(owner);
    eventually("the end is noticed", || reader.transport.connected() == 0).await;
    let reason = reader.transport.last_refusal(&endpoint).expect("a reason");
    assert_eq!(reason, "the owner has gone");
    let (tier, registered) = arena(9, BYTES);
    let mut stored = store(&tier, 9);
    let server = serve_at(address, registered);
    // Locations of the old arena are as good as any others: what is there is told by its key.
    assert_eq!(tier.evict(stored[0].0), Eviction::Done);
    let old = stored.remove(0);
    let got = reader
        .fetch(&server.endpoint(), &[old, stored[0], stored[1]])
        .await;
    assert_eq!(got[0], FetchOutcome::Stale);
    assert!(all_fetched(&got[1..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_that_pass_at_any_moment_cost_no_buffer() {
    let owner = Owner::with(64, BYTES);
    let reader = Reader::new(128, BYTES);
    let endpoint = owner.server.endpoint();
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    for step in 0..40 {
        let deadline = Duration::from_micros(step * step * 10);
        let got = reader
            .fetch_within(deadline, &endpoint, &owner.stored)
            .await;
        let ended = |outcome: &FetchOutcome| {
            matches!(
                outcome,
                FetchOutcome::Fetched(_) | FetchOutcome::Unreachable
            )
        };
        assert!(got.iter().all(ended), "{got:?}");
        reader.has_all_buffers().await;
    }
    let until_it_works = async {
        while !all_fetched(&reader.fetch(&endpoint, &owner.stored).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let worked = tokio::time::timeout(crate::support::DEADLINE, until_it_works).await;
    worked.expect("it works again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_small_fetches_share_a_connection() {
    let owner = Owner::with(64, 4096);
    let reader = Reader::new(64, 4096);
    let endpoint = owner.server.endpoint();
    let fetching = (0..16usize).map(|task| {
        let (reader, endpoint, stored) = (&reader, &endpoint, &owner.stored);
        async move {
            for round in 0..125usize {
                let block = stored[(task * 31 + round * 7) % stored.len()];
                assert!(all_fetched(&reader.fetch(endpoint, &[block]).await));
            }
        }
    });
    futures_util::future::join_all(fetching).await;
    let counts = reader.transport.counts();
    assert_eq!((counts.blocks, counts.connections), (2000, 1));
    assert_eq!(
        counts.work_requests, 6000,
        "descriptor, payload, descriptor"
    );
    assert_eq!(owner.server.readers(), 1);
    reader.has_all_buffers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_another_memory_are_not_written() {
    let owner = Owner::with(1, BYTES);
    let reader = Reader::new(1, BYTES);
    let (other, _) = arena(1, BYTES);
    let into = other.reserve().expect("a slot");
    let (location, n) = owner.stored[0];
    let want = Want {
        location,
        key: key(n),
        into,
    };
    let endpoint = owner.server.endpoint();
    let fetched = reader
        .transport
        .fetch(&endpoint, vec![want], crate::support::DEADLINE)
        .await;
    assert_eq!(fetched[0].outcome, FetchOutcome::Unreachable);
    assert!(
        fetched[0]
            .into
            .bytes()
            .to_vec()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_unused_for_longest_makes_room() {
    let owners = [Owner::with(1, BYTES), Owner::with(1, BYTES)];
    let few = flexkv_rdma::RdmaConfig {
        max_owners: 1,
        ..config()
    };
    let reader = Reader::with(few, arena(1, BYTES));
    for owner in [&owners[0], &owners[1], &owners[0]] {
        let wanted: &[(Location, u32)] = &owner.stored;
        assert!(all_fetched(
            &reader.fetch(&owner.server.endpoint(), wanted).await
        ));
        assert_eq!(reader.transport.connected(), 1);
    }
    eventually("the connection is closed", || {
        owners[1].server.readers() == 0
    })
    .await;
}
