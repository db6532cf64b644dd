//! Who waits for whom: small batches beside large ones, and the caller's thread for nobody.

use std::io::Write as _;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flexkv_ports::{FetchOutcome, Transport as _};
use flexkv_tcp::TransportConfig;
use rustix::thread::sched_getaffinity;

use crate::faults::honest_answer;
use crate::support::{
    DEADLINE, Reader, Scripted, config, heap, is_fetched, serve, server_config, store, welcome,
};

#[tokio::test]
async fn a_small_batch_does_not_wait_for_all_of_a_large_one() {
    let bytes = 256 << 10;
    let tier = heap(400, bytes);
    let stored = store(&*tier, 400);
    let server = serve(tier, server_config());
    let one = TransportConfig {
        connections: 1,
        ..config(bytes)
    };
    let reader = Reader::with(one, 402);
    let endpoint = server.endpoint();
    reader.eventually_fetches(endpoint, &stored[..1]).await;
    let large = reader
        .transport
        .fetch(endpoint, reader.wants(&stored), DEADLINE);
    let small = reader.outcomes(endpoint, &stored[..2], DEADLINE);
    let mut large = std::pin::pin!(large);
    let outcomes = tokio::select! {
        biased;
        _ = &mut large => panic!("the small batch waits for 100 MiB"),
        outcomes = small => outcomes,
    };
    assert!(outcomes.iter().all(is_fetched), "{outcomes:?}");
    let fetched = large.await;
    assert!(fetched.iter().all(|fetched| is_fetched(&fetched.outcome)));
}

/// A small batch is fetched by the caller's thread, but not if the owner takes its time.
#[tokio::test]
async fn a_caller_is_not_held_up_by_an_owner_that_does_not_answer_at_once() {
    const BYTES: usize = 1000;
    let (answer, answers) = channel::<usize>();
    let answers = Arc::new(Mutex::new(answers));
    let owner = Scripted::new(move |mut stream| {
        welcome(&mut stream, BYTES);
        let answers = answers.lock().expect("no panic");
        // The first part of an answer is sent when the test says so, and then the rest.
        loop {
            let bytes = honest_answer(&mut stream, BYTES);
            let Ok(first) = answers.recv() else {
                return;
            };
            stream.write_all(&bytes[..first]).expect("room to send");
            if first < bytes.len() && answers.recv().is_err() {
                return;
            }
            stream.write_all(&bytes[first..]).expect("room to send");
        }
    });
    let one = TransportConfig {
        connections: 1,
        ..config(BYTES)
    };
    let reader = Reader::with(one, 1);
    let blocks = store(&*heap(1, 1), 1);
    answer.send(BYTES).expect("the owner listens");
    answer.send(0).expect("the owner listens");
    let outcomes = reader.outcomes(&owner.endpoint, &blocks, DEADLINE).await;
    assert!(is_fetched(&outcomes[0]));
    for first in [0, 10, 100, 500] {
        let fetching = reader.outcomes(&owner.endpoint, &blocks, DEADLINE);
        let mut fetching = std::pin::pin!(fetching);
        for step in [first, 0] {
            tokio::select! {
                biased;
                outcomes = &mut fetching => panic!("{outcomes:?} before the answer"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            answer.send(step).expect("the owner listens");
        }
        let outcomes = fetching.await;
        assert!(is_fetched(&outcomes[0]), "{first}: {outcomes:?}");
        reader.all_buffers_return().await;
    }
    // One that never answers costs no more than the deadline.
    let short = Duration::from_millis(50);
    let outcomes = reader.outcomes(&owner.endpoint, &blocks, short).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    reader.all_buffers_return().await;
    drop(answer);
}

/// Threads of a connection stay on one core for a while; a caller's thread is nobody's to keep.
#[tokio::test]
async fn a_fetch_lets_its_caller_run_where_it_could_before() {
    const BYTES: usize = 4096;
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 4);
    let server = serve(tier, server_config());
    let reader = Reader::new(4, BYTES);
    let before = sched_getaffinity(None).expect("known");
    for _ in 0..100 {
        let outcomes = reader.outcomes(server.endpoint(), &stored, DEADLINE).await;
        assert!(outcomes.iter().all(is_fetched), "{outcomes:?}");
        assert_eq!(sched_getaffinity(None).expect("known"), before);
    }
}
