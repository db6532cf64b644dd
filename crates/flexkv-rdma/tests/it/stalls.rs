//! A device that does not move: what was posted stays posted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flexkv_ports::{BlockTier as _, Transport as _, Want};

use crate::soft::SoftNic;
use crate::support::{
    BYTES, NAMESPACE, Owner, Reader, all_fetched, all_unreachable, arena_of, config, key,
};

fn reader() -> (Reader, Arc<SoftNic>) {
    let nic = Arc::new(SoftNic::new());
    let arena = arena_of(nic.clone(), NAMESPACE, 100, BYTES);
    (Reader::with(config(), arena), nic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_takes_the_buffers_back_from_the_device() {
    let owner = Owner::with(100, BYTES);
    let (reader, nic) = reader();
    let endpoint = owner.server.endpoint();
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    nic.stalled.store(true, Ordering::Relaxed);
    let soon = Duration::from_millis(50);
    let got = reader.fetch_within(soon, &endpoint, &owner.stored).await;
    assert!(all_unreachable(&got));
    reader.has_all_buffers().await;
    let reason = reader.transport.last_refusal(&endpoint).expect("a reason");
    assert_eq!(reason, "no answer before the deadline");
    nic.stalled.store(false, Ordering::Relaxed);
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffers_of_a_fetch_that_was_given_up_stay_with_the_device_until_it_is_done() {
    let owner = Owner::with(10, BYTES);
    let (reader, nic) = reader();
    let endpoint = owner.server.endpoint();
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    nic.stalled.store(true, Ordering::Relaxed);
    let want = |(location, n): &(_, u32)| Want {
        location: *location,
        key: key(*n),
        into: reader.tier.reserve().expect("a slot"),
    };
    let wants = owner.stored.iter().map(want).collect();
    let mut fetching = reader
        .transport
        .fetch(&endpoint, wants, crate::support::DEADLINE);
    assert!(futures_util::poll!(&mut fetching).is_pending());
    drop(fetching);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        reader.tier.free_slots(),
        90,
        "the device may still write to them"
    );
    nic.stalled.store(false, Ordering::Relaxed);
    reader.has_all_buffers().await;
    assert!(
        all_fetched(&reader.fetch(&endpoint, &owner.stored).await),
        "the same connection"
    );
    assert_eq!(reader.transport.counts().connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_goes_in_the_middle_gives_the_buffers_back() {
    let owner = Owner::with(10, BYTES);
    let (reader, nic) = reader();
    let endpoint = owner.server.endpoint();
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.stored).await));
    nic.stalled.store(true, Ordering::Relaxed);
    let stored = owner.stored.clone();
    let going = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(owner);
    };
    let (got, ()) = tokio::join!(reader.fetch(&endpoint, &stored), going);
    assert!(all_unreachable(&got));
    reader.has_all_buffers().await;
}
