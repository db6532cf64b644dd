//! Readers that send garbage, do not read, or keep what they were lent.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flexkv_block::Location;
use flexkv_handshake::{Credential, Refusal, Refusals};
use flexkv_ports::{BlockTier, Eviction};
use flexkv_tcp::wire::{Entry, RESPONSE_BYTES, Request, RequestKind, Response};
use flexkv_tcp::{Served, ServerConfig, TcpServer, TransportConfig};
use proptest::prelude::*;

use crate::support::{
    FileTier, Only, Reader, eventually, greeted, heap, is_fetched, key, opening, read, serve,
    server_config, store,
};

const BYTES: usize = 4 << 20;
/// How long readers wait where that is not what is tested.
const PATIENCE: Duration = Duration::from_secs(20);

fn fetch(id: u32, released: u32, blocks: &[(Location, u32)], patience: Duration) -> Vec<u8> {
    let request = Request {
        kind: RequestKind::Fetch,
        id,
        count: blocks.len() as u32,
        released,
        patience_ms: patience.as_millis() as u32,
    };
    let mut bytes = request.encode().to_vec();
    for (location, n) in blocks {
        let entry = Entry {
            location: location.to_word(),
            key: key(*n),
        };
        bytes.extend_from_slice(&entry.encode());
    }
    bytes
}

fn by_reference() -> ServerConfig {
    ServerConfig {
        by_reference: Some(1),
        ..server_config()
    }
}

/// Reads until the owner closes; how many bytes came.
fn drain(mut stream: TcpStream) -> usize {
    let mut bytes = vec![0; 1 << 20];
    let mut count = 0;
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        count += n;
    }
    count
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_given_up_with_its_pins() {
    for tier in [heap(8, BYTES), FileTier::new(8, BYTES)] {
        let stored = store(&*tier, 8);
        let server = serve(tier.clone(), by_reference());
        let mut stream = greeted(&server, BYTES);
        let request = fetch(1, 0, &stored, Duration::from_millis(200));
        stream.write_all(&request).expect("room to send");
        stream.peek(&mut [0]).expect("the answer begins");
        assert_eq!(tier.evict(stored[7].0), Eviction::Pinned);
        for (location, n) in &stored {
            let evicted = || tier.evict(*location) == Eviction::Done;
            eventually(&format!("block {n} is unpinned"), evicted).await;
        }
        eventually("the connection is closed", || server.connections() == 0).await;
        drop(stream);
    }
}

#[tokio::test]
async fn what_was_sent_is_counted() {
    for config in [server_config(), by_reference()] {
        let bytes = 64 << 10;
        let tier = FileTier::new(3, bytes);
        let mut stored = store(&*tier, 3);
        assert_eq!(tier.evict(stored[2].0), Eviction::Done);
        let server = serve(tier, config);
        let served = server.count_served();
        assert_eq!(served(), Served::default());
        stored.push((stored[0].0, 0));
        let reader = Reader::new(4, bytes);
        let outcomes = reader.outcomes(server.endpoint(), &stored, PATIENCE).await;
        let found = outcomes
            .iter()
            .filter(|outcome| is_fetched(outcome))
            .count();
        assert_eq!(found, 3, "one of the four is no longer there");
        let all = Served {
            blocks: 3,
            bytes: 3 * bytes as u64,
        };
        eventually("all is counted", || served() == all).await;
        drop(server);
        assert_eq!(served(), all);
    }
}

#[tokio::test]
async fn what_is_sent_by_reference_stays_pinned_until_it_is_released() {
    let tier = FileTier::new(3, BYTES);
    let stored = store(&*tier, 3);
    let server = serve(tier.clone(), by_reference());
    let mut stream = greeted(&server, BYTES);
    let patience = Duration::from_secs(600);
    let mut receive = |request: Vec<u8>| {
        stream.write_all(&request).expect("room to send");
        let head = RESPONSE_BYTES + flexkv_tcp::wire::ANSWER_BYTES;
        let mut bytes = vec![0; head + BYTES];
        stream.read_exact(&mut bytes).expect("a block");
    };
    receive(fetch(1, 0, &stored[..1], patience));
    assert_eq!(tier.evict(stored[0].0), Eviction::Pinned);
    receive(fetch(2, 0, &stored[1..2], patience));
    assert_eq!(tier.evict(stored[0].0), Eviction::Pinned);
    receive(fetch(3, 1, &stored[2..], patience));
    assert_eq!(tier.evict(stored[0].0), Eviction::Done);
    assert_eq!(tier.evict(stored[1].0), Eviction::Pinned);
    drop(stream);
    for (location, _) in &stored[1..] {
        let evicted = || tier.evict(*location) == Eviction::Done;
        eventually("a reader that left needs no pins", evicted).await;
    }
}

#[tokio::test]
async fn a_reader_releases_what_it_has_read() {
    let bytes = 256 << 10;
    let tier = FileTier::new(20, bytes);
    let stored = store(&*tier, 20);
    let patient = ServerConfig {
        response_time: Duration::from_secs(600),
        ..by_reference()
    };
    let server = serve(tier.clone(), patient);
    let reader = Reader::new(20, bytes);
    let deadline = Duration::from_secs(600);
    let fetched = reader.fetch(server.endpoint(), &stored, deadline).await;
    assert!(fetched.iter().all(|fetched| is_fetched(&fetched.outcome)));
    for (location, n) in &stored {
        let evicted = || tier.evict(*location) == Eviction::Done;
        eventually(&format!("block {n} is unpinned"), evicted).await;
    }
}

#[tokio::test]
async fn a_reader_that_never_releases_is_cut_off() {
    let bytes = 4096;
    let tier = FileTier::new(1, bytes);
    let stored = store(&*tier, 1);
    let server = serve(tier.clone(), by_reference());
    let mut stream = greeted(&server, bytes);
    for id in 1..100 {
        let request = fetch(id, 0, &stored, Duration::from_secs(60));
        if stream.write_all(&request).is_err() {
            break;
        }
    }
    assert!(drain(stream) < 50 * bytes, "served 50 unreleased requests");
    let evicted = || tier.evict(stored[0].0) == Eviction::Done;
    eventually("its pins end", evicted).await;
}

#[tokio::test]
async fn half_a_hello_or_request_is_not_waited_for() {
    let tier = heap(1, 4096);
    let stored = store(&*tier, 1);
    let short = Duration::from_millis(100);
    let config = ServerConfig {
        handshake_time: short,
        request_time: short,
        ..server_config()
    };
    let server = serve(tier, config);
    let mut half = TcpStream::connect(server.address()).expect("a connection");
    half.write_all(&opening(4096)[..100]).expect("room to send");
    let mut later = greeted(&server, 4096);
    let request = fetch(1, 0, &stored, Duration::from_secs(1));
    later
        .write_all(&request[..request.len() - 1])
        .expect("room to send");
    eventually("both are closed", || server.connections() == 0).await;
}

#[tokio::test]
async fn requests_out_of_order_or_without_meaning_end_the_connection() {
    let bytes = 4096;
    let tier = heap(1, bytes);
    let stored = store(&*tier, 1);
    let server = serve(tier, server_config());
    let second = Duration::from_secs(1);
    let answer = RESPONSE_BYTES + flexkv_tcp::wire::ANSWER_BYTES + bytes;
    for (requests, answers) in [
        (vec![fetch(0, 0, &stored, second)], 0),
        (
            vec![fetch(5, 0, &stored, second), fetch(5, 0, &stored, second)],
            1,
        ),
        (
            vec![fetch(5, 0, &stored, second), fetch(6, 9, &stored, second)],
            1,
        ),
    ] {
        let mut stream = greeted(&server, bytes);
        stream.write_all(&requests.concat()).expect("room to send");
        assert_eq!(drain(stream), answers * answer);
    }
}

#[test]
fn requests_for_too_much_are_refused_and_counted() {
    let tier = heap(4, 4096);
    let stored = store(&*tier, 4);
    let counted = Arc::new(AtomicU64::new(0));
    let server = serve(
        tier,
        ServerConfig {
            max_request_bytes: 3 * 4096,
            refusals: Refusals::register(&Only(Refusal::Oversized, counted.clone()), "n", "tcp"),
            ..server_config()
        },
    );
    let second = Duration::from_secs(1);
    let head = |blocks: &[_], count: u32| {
        let mut bytes = fetch(1, 0, blocks, second);
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        bytes
    };
    let refused = [
        (head(&stored, 4), 4),
        (head(&[], 0), 0),
        (head(&[], u32::MAX), u32::MAX),
    ];
    for (number, (request, count)) in (1..).zip(refused) {
        let mut stream = greeted(&server, 4096);
        stream.write_all(&request).expect("room to send");
        let answer = read::<RESPONSE_BYTES>(&mut stream);
        let response = Response::decode(&answer, 1, count).expect("a response");
        assert!(response.oversized && !response.held);
        assert_eq!(drain(stream), 0, "the connection is closed");
        assert_eq!(counted.load(Ordering::Relaxed), number);
    }
    let mut stream = greeted(&server, 4096);
    stream
        .write_all(&head(&stored[..3], 3))
        .expect("room to send");
    let answer = read::<RESPONSE_BYTES>(&mut stream);
    assert!(
        !Response::decode(&answer, 1, 3)
            .expect("a response")
            .oversized
    );
}

/// One that does not read holds what it asked for; more is refused on all its connections, but not to
/// others.
#[tokio::test]
async fn memory_pinned_for_one_reader_is_bounded() {
    let tier = heap(8, BYTES);
    let stored = store(&*tier, 8);
    let counted = Arc::new(AtomicU64::new(0));
    let config = ServerConfig {
        max_bytes_per_reader: 8 * BYTES,
        refusals: Refusals::register(&Only(Refusal::Oversized, counted.clone()), "n", "tcp"),
        ..server_config()
    };
    let server = serve(tier, config);
    let mut silent = greeted(&server, BYTES);
    let request = fetch(1, 0, &stored[..7], PATIENCE);
    silent.write_all(&request).expect("room to send");
    silent.peek(&mut [0]).expect("the answer begins");
    let mut greedy = greeted(&server, BYTES);
    let request = fetch(1, 0, &stored[..2], PATIENCE);
    greedy.write_all(&request).expect("room to send");
    let answer = read::<RESPONSE_BYTES>(&mut greedy);
    let response = Response::decode(&answer, 1, 2).expect("a response");
    assert!(response.oversized);
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    let other = TransportConfig {
        credential: Credential::new(b"the cluster's", "another-node"),
        ..crate::support::config(BYTES)
    };
    let other = Reader::with(other, 8);
    other.eventually_fetches(server.endpoint(), &stored).await;
    drop(silent);
    let again = Reader::new(8, BYTES);
    again.eventually_fetches(server.endpoint(), &stored).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_never_harms_the_owner_nor_the_next_reader(
        garbage in proptest::collection::vec(any::<u8>(), 0..2000),
        prefix in 0..4u8,
    ) {
        let owner = OWNER.get_or_init(Owner::new);
        let mut bytes = Vec::new();
        if prefix > 0 {
            bytes.extend_from_slice(&opening(4096));
        }
        if prefix > 1 {
            bytes.extend_from_slice(&fetch(1, 0, &owner.stored, Duration::from_secs(1)));
        }
        if prefix > 2 {
            bytes.extend_from_slice(b"FKRQ\x01\0\0\0");
        }
        bytes.extend_from_slice(&garbage);
        let mut stream = TcpStream::connect(owner.server.address()).expect("a connection");
        // The owner may have hung up on earlier bytes.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        drain(stream);
        let endpoint = owner.server.endpoint();
        let fetching = owner.reader.eventually_fetches(endpoint, &owner.stored);
        owner.runtime.block_on(fetching);
    }
}

/// One owner and one good reader for all cases of garbage.
struct Owner {
    server: TcpServer,
    reader: Reader,
    stored: Vec<(Location, u32)>,
    runtime: tokio::runtime::Runtime,
}

static OWNER: std::sync::OnceLock<Owner> = std::sync::OnceLock::new();

impl Owner {
    fn new() -> Self {
        let tier: Arc<dyn BlockTier> = heap(4, 4096);
        let stored = store(&*tier, 2);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            server: serve(tier, server_config()),
            reader: Reader::new(2, 4096),
            stored,
            runtime: runtime.enable_all().build().expect("a runtime"),
        }
    }
}
