//! Owners that stop, stall, lie or go away, and readers that lose patience.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, FrameHeader, Location};
use flexkv_ports::{FetchOutcome, Transport as _};
use flexkv_tcp::wire::{Answer, ENTRY_BYTES, Entry, REQUEST_BYTES, Request, Response};
use flexkv_tcp::{TcpTransport, TransportConfig};

use crate::support::{
    DEADLINE, Reader, Scripted, block, config, heap, is_fetched, listen_silently, pause, serve,
    serve_at, server_config, store, welcome,
};

const BYTES: usize = 64 << 10;
const SHORT: Duration = Duration::from_millis(300);
const UNREACHABLE: FetchOutcome = FetchOutcome::Unreachable;

/// Where blocks would be at an owner that has them.
fn locations(count: u32) -> Vec<(Location, u32)> {
    store(&*heap(count, 1), count)
}

fn read_request(stream: &mut TcpStream) -> (Request, Vec<Entry>) {
    let mut head = [0; REQUEST_BYTES];
    stream.read_exact(&mut head).expect("a request");
    let request = Request::decode(&head).expect("a request");
    let entry = |_| {
        let mut bytes = [0; ENTRY_BYTES];
        stream.read_exact(&mut bytes).expect("an entry");
        Entry::decode(&bytes)
    };
    (request, (0..request.count).map(entry).collect())
}

/// The honest answer for block `n`.
fn honest(n: u32, entry: &Entry) -> FrameHeader {
    FrameHeader {
        key: entry.key,
        location: entry.location().expect("a location"),
        length: BYTES as u32,
        checksum: Checksum::of(&block(n, BYTES)),
    }
}

/// Answers one request with blocks `0..`, as changed by `lie`, and the first `sent` bytes of the
/// payloads.
fn answer(stream: &mut TcpStream, lie: impl Fn(&mut Response, &mut [FrameHeader]), sent: usize) {
    welcome(stream, BYTES);
    let (request, entries) = read_request(stream);
    let mut response = Response {
        held: false,
        oversized: false,
        id: request.id,
        count: request.count,
    };
    let headers = (0..).zip(&entries).map(|(n, entry)| honest(n, entry));
    let mut headers: Vec<_> = headers.collect();
    lie(&mut response, &mut headers);
    let mut bytes = response.encode().to_vec();
    for header in headers {
        bytes.extend_from_slice(&Answer::Found(header).encode());
    }
    let payloads = (0..request.count).flat_map(|n| block(n, BYTES));
    bytes.extend(payloads.take(sent));
    // A reader that does not like the beginning may hang up.
    let _ = stream.write_all(&bytes);
}

/// What a reader makes of two blocks from such an owner.
async fn check_lie(
    lie: impl Fn(&mut Response, &mut [FrameHeader]) + Clone + Send + 'static,
    sent: usize,
    expect: [FetchOutcome; 2],
) {
    let owner = Scripted::new(move |mut stream| answer(&mut stream, &lie, sent));
    let reader = Reader::new(2, BYTES);
    let outcomes = reader
        .outcomes(&owner.endpoint, &locations(2), DEADLINE)
        .await;
    assert_eq!(outcomes, expect);
    reader.all_buffers_return().await;
}

/// Reads a request for one block, and gives the bytes of an honest answer with test block 0.
pub(crate) fn honest_answer(stream: &mut TcpStream, block_bytes: usize) -> Vec<u8> {
    let (request, entries) = read_request(stream);
    let response = Response {
        held: false,
        oversized: false,
        id: request.id,
        count: 1,
    };
    let payload = block(0, block_bytes);
    let header = FrameHeader {
        key: entries[0].key,
        location: entries[0].location().expect("a location"),
        length: block_bytes as u32,
        checksum: Checksum::of(&payload),
    };
    let answer = Answer::Found(header).encode();
    [&response.encode()[..], &answer, &payload].concat()
}

/// About a hundredth of what the loopback interface carries.
#[tokio::test]
async fn a_slow_owner_is_waited_for_until_the_deadline_and_what_came_is_kept() {
    let slow = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        loop {
            let (request, entries) = read_request(&mut stream);
            let response = Response {
                held: false,
                oversized: false,
                id: request.id,
                count: request.count,
            };
            let mut bytes = response.encode().to_vec();
            for (n, entry) in (0..).zip(&entries) {
                bytes.extend_from_slice(&Answer::Found(honest(n, entry)).encode());
            }
            bytes.extend((0..request.count).flat_map(|n| block(n, BYTES)));
            for step in bytes.chunks(32 << 10) {
                // A reader that has given up hangs up.
                if !pause(&stream, Duration::from_millis(2)) || stream.write_all(step).is_err() {
                    return;
                }
            }
        }
    });
    let one = TransportConfig {
        connections: 1,
        ..config(BYTES)
    };
    let reader = Reader::with(one, 4);
    let patient = reader
        .outcomes(&slow.endpoint, &locations(4), DEADLINE)
        .await;
    assert!(patient.iter().all(is_fetched), "{patient:?}");
    let little = Duration::from_millis(10);
    let hasty = reader.outcomes(&slow.endpoint, &locations(4), little).await;
    let kept = hasty
        .iter()
        .take_while(|outcome| is_fetched(outcome))
        .count();
    assert_eq!(hasty[kept..], [UNREACHABLE; 4][kept..]);
    assert!(kept < 4, "{hasty:?}");
    reader.all_buffers_return().await;
}

fn fetched(n: u32) -> FetchOutcome {
    FetchOutcome::Fetched(Checksum::of(&block(n, BYTES)))
}

#[tokio::test]
async fn an_honest_script_is_believed() {
    check_lie(|_, _| {}, 2 * BYTES, [fetched(0), fetched(1)]).await;
}

#[tokio::test]
async fn what_arrived_before_the_stream_broke_off_is_kept() {
    check_lie(|_, _| {}, 2 * BYTES - 1, [fetched(0), UNREACHABLE]).await;
    check_lie(|_, _| {}, BYTES - 1, [UNREACHABLE; 2]).await;
    check_lie(|_, _| {}, 0, [UNREACHABLE; 2]).await;
}

#[tokio::test]
async fn answers_that_do_not_fit_the_request_are_not_believed() {
    let corrupt = FetchOutcome::Corrupt;
    let all = 2 * BYTES;
    check_lie(|r, _| r.id += 1, all, [UNREACHABLE; 2]).await;
    check_lie(|r, _| r.count = 1, all, [UNREACHABLE; 2]).await;
    check_lie(|_, h| h[1].length -= 1, all, [UNREACHABLE, corrupt]).await;
    check_lie(|_, h| h[0].length = 1 << 30, all, [corrupt, UNREACHABLE]).await;
    let other = BlockKey::from_u128(4);
    check_lie(move |_, h| h[0].key = other, all, [corrupt, fetched(1)]).await;
    check_lie(|_, h| h.swap(0, 1), all, [corrupt; 2]).await;
    check_lie(|_, h| h[1].checksum.0 ^= 1, all, [fetched(0), corrupt]).await;
}

#[tokio::test]
async fn an_owner_that_never_answers_costs_no_more_than_the_deadline() {
    let deaf = Scripted::new(listen_silently);
    let mute = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        listen_silently(stream);
    });
    let trickling = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        read_request(&mut stream);
        while pause(&stream, Duration::from_millis(20)) && stream.write_all(b"F").is_ok() {}
    });
    let reader = Reader::new(8, BYTES);
    for owner in [deaf, mute, trickling] {
        for _ in 0..3 {
            let outcomes = reader.outcomes(&owner.endpoint, &locations(8), SHORT).await;
            assert_eq!(outcomes, [UNREACHABLE; 8]);
            reader.all_buffers_return().await;
        }
    }
}

#[tokio::test]
async fn an_owner_that_is_slow_but_answers_is_asked_again_at_once() {
    let slow = Scripted::new(|mut stream| {
        answer(&mut stream, |_, _| {}, BYTES + 10);
        listen_silently(stream);
    });
    let one = TransportConfig {
        connections: 1,
        ..config(BYTES)
    };
    let reader = Reader::with(one, 2);
    for _ in 0..4 {
        let outcomes = reader.outcomes(&slow.endpoint, &locations(2), SHORT).await;
        assert_eq!(outcomes, [fetched(0), UNREACHABLE]);
    }
}

#[tokio::test]
async fn a_short_deadline_is_kept_while_others_are_patient() {
    let mute = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        listen_silently(stream);
    });
    let reader = Reader::new(8, BYTES);
    let blocks = locations(8);
    let patient = reader.fetch(&mute.endpoint, &blocks[..6], 10 * DEADLINE);
    let hasty = async {
        tokio::time::sleep(SHORT).await;
        reader.outcomes(&mute.endpoint, &blocks[6..], SHORT).await
    };
    tokio::select! {
        biased;
        _ = patient => panic!("the owner is mute"),
        outcomes = hasty => assert_eq!(outcomes, [UNREACHABLE; 2]),
    }
}

#[tokio::test]
async fn an_owner_that_hangs_up_is_left_alone_for_a_while() {
    let owner = Scripted::new(drop);
    let reader = Reader::new(1, BYTES);
    for _ in 0..200 {
        let outcomes = reader
            .outcomes(&owner.endpoint, &locations(1), DEADLINE)
            .await;
        assert_eq!(outcomes, [UNREACHABLE]);
    }
    let tries = owner.accepted.load(Ordering::SeqCst);
    assert!(
        (1..50).contains(&tries),
        "{tries} connections for 200 fetches"
    );
}

#[tokio::test]
async fn an_owner_that_stops_in_mid_transfer_is_missed_and_found_again() {
    let bytes = 1 << 20;
    let tier = heap(32, bytes);
    let stored = store(&*tier, 32);
    let reader = Reader::new(64, bytes);
    let mut server = serve(tier.clone(), server_config());
    let (address, endpoint) = (server.address(), server.endpoint().to_owned());
    for round in 0..8 {
        reader.eventually_fetches(&endpoint, &stored[..2]).await;
        let stopping = async {
            tokio::time::sleep(Duration::from_micros(1000 * round)).await;
            tokio::task::spawn_blocking(move || drop(server)).await
        };
        let fetching = reader.outcomes(&endpoint, &stored, DEADLINE);
        let (outcomes, stopped) = tokio::join!(fetching, stopping);
        stopped.expect("a clean stop");
        assert!(
            outcomes.iter().all(|o| is_fetched(o) || *o == UNREACHABLE),
            "{outcomes:?}"
        );
        let gone = reader.outcomes(&endpoint, &stored[..2], DEADLINE).await;
        assert_eq!(gone, [UNREACHABLE; 2]);
        reader.all_buffers_return().await;
        server = serve_at(address, tier.clone(), server_config()).expect("again");
    }
    reader.eventually_fetches(&endpoint, &stored).await;
}

#[tokio::test]
async fn an_owner_restarted_between_two_fetches_is_not_missed() {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 4);
    let reader = Reader::new(4, BYTES);
    let server = serve(tier.clone(), server_config());
    let (address, endpoint) = (server.address(), server.endpoint().to_owned());
    reader.eventually_fetches(&endpoint, &stored).await;
    drop(server);
    let _server = serve_at(address, tier, server_config()).expect("again");
    let outcomes = reader.outcomes(&endpoint, &stored, DEADLINE).await;
    assert!(outcomes.iter().all(is_fetched), "{outcomes:?}");
}

#[tokio::test]
async fn a_dropped_fetch_returns_its_buffers_from_an_owner_that_never_answers() {
    let mute = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        listen_silently(stream);
    });
    let reader = Reader::new(16, BYTES);
    let wants = reader.wants(&locations(16));
    let fetching = reader
        .transport
        .fetch(&mute.endpoint, wants, Duration::from_secs(2));
    assert!(tokio::time::timeout(SHORT, fetching).await.is_err());
    reader.all_buffers_return().await;
}

#[tokio::test]
async fn a_dropped_fetch_returns_what_nobody_reads_and_a_dropped_transport_the_rest() {
    let mute = Scripted::new(|mut stream| {
        welcome(&mut stream, BYTES);
        listen_silently(stream);
    });
    let mut reader = Reader::new(500, BYTES);
    let wants = reader.wants(&locations(500));
    let fetching = reader
        .transport
        .fetch(&mute.endpoint, wants, 100 * DEADLINE);
    assert!(tokio::time::timeout(SHORT, fetching).await.is_err());
    assert!(
        reader.tier.free_slots() > 0,
        "buffers that nobody reads into"
    );
    reader.transport = TcpTransport::new(config(BYTES));
    reader.all_buffers_return().await;
}

#[tokio::test]
async fn slots_of_another_size_and_odd_endpoints_are_never_sent_for() {
    let reader = Reader {
        tier: heap(3, 100),
        transport: TcpTransport::new(config(BYTES)),
    };
    let owner = Scripted::new(drop);
    let outcomes = reader
        .outcomes(&owner.endpoint, &locations(3), DEADLINE)
        .await;
    assert_eq!(outcomes, [UNREACHABLE; 3]);
    assert_eq!(owner.accepted.load(Ordering::SeqCst), 0);
    let reader = Reader::new(1, BYTES);
    for endpoint in [
        "",
        "tcp",
        "tcp://",
        "tcp://localhost",
        "tcp://1.2.3.4",
        "udp://1.2.3.4:5",
    ] {
        let outcomes = reader.outcomes(endpoint, &locations(1), DEADLINE).await;
        assert_eq!(outcomes, [UNREACHABLE], "at `{endpoint}`");
    }
}

#[tokio::test]
async fn more_peers_than_are_remembered_are_served_in_turn() {
    let owners: Vec<_> = (0..3)
        .map(|_| {
            let tier = heap(2, BYTES);
            let stored = store(&*tier, 2);
            (serve(tier, server_config()), stored)
        })
        .collect();
    let two = TransportConfig {
        max_peers: 2,
        ..config(BYTES)
    };
    let reader = Reader::with(two, 2);
    for _ in 0..5 {
        for (server, stored) in &owners {
            reader.eventually_fetches(server.endpoint(), stored).await;
        }
    }
    let connections: usize = owners.iter().map(|(server, _)| server.connections()).sum();
    assert!(
        connections <= 6,
        "{connections} connections to three owners"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_fetches_from_many_tasks_all_arrive() {
    let bytes = 3000;
    let tier = heap(64, bytes);
    let stored = Arc::new(store(&*tier, 64));
    let server = serve(tier, server_config());
    let reader = Arc::new(Reader::new(512, bytes));
    let task = |task: usize| {
        let (reader, stored) = (reader.clone(), stored.clone());
        let endpoint = server.endpoint().to_owned();
        tokio::spawn(async move {
            for round in 0..200 {
                let at = (task * 13 + round) % 60;
                let blocks = &stored[at..at + 1 + round % 4];
                let outcomes = reader.outcomes(&endpoint, blocks, DEADLINE).await;
                assert!(outcomes.iter().all(is_fetched), "{outcomes:?}");
            }
        })
    };
    let tasks: Vec<_> = (0..8).map(task).collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    reader.all_buffers_return().await;
}
