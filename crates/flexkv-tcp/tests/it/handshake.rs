//! Who may connect, and what a refused reader learns.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flexkv_block::NamespaceId;
use flexkv_handshake::{
    Asking, CONFIRM_BYTES, Credential, PROOF_BYTES, Refusal, Refusals, Terms, VERDICT_BYTES,
    WELCOME_BYTES, Welcome,
};
use flexkv_ports::FetchOutcome;
use flexkv_tcp::wire::MAGIC;
use flexkv_tcp::{ServerConfig, TransportConfig};

use crate::support::{
    DEADLINE, Only, Reader, Scripted, config, credential, dial, eventually, heap, read, serve,
    server_config, store, terms,
};

const BYTES: usize = 4096;

/// A server, and how often it refuses for this reason.
fn counting(refusal: Refusal) -> (ServerConfig, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let config = ServerConfig {
        refusals: Refusals::register(&Only(refusal, count.clone()), "a-node", "tcp"),
        ..server_config()
    };
    (config, count)
}

/// A reader with this configuration is refused with these words, then an ordinary one served.
async fn check(reader: TransportConfig, refusal: Refusal, words: &str) {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 2);
    let (config, count) = counting(refusal);
    let server = serve(tier, config);
    let refused = Reader::with(
        TransportConfig {
            connections: 1,
            ..reader
        },
        2,
    );
    let outcomes = refused.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable; 2]);
    let reason = refused.transport.last_refusal(server.endpoint());
    let reason = reason.expect("a reason");
    assert!(reason.contains(words), "`{reason}` does not say `{words}`");
    assert_eq!(count.load(Ordering::Relaxed), 1);

    let welcome = Reader::new(2, BYTES);
    welcome.eventually_fetches(server.endpoint(), &stored).await;
    assert_eq!(welcome.transport.last_refusal(server.endpoint()), None);
}

#[tokio::test]
async fn readers_of_another_namespace_are_refused() {
    let other = TransportConfig::new(NamespaceId::from_u128(0xbad), BYTES as u32, credential());
    let words = "namespace 00000000000000000000000000000bad";
    check(other, Refusal::Namespace, words).await;
}

#[tokio::test]
async fn readers_of_another_block_size_are_refused() {
    check(
        config(8192),
        Refusal::BlockSize,
        "4096 bytes here, not 8192",
    )
    .await;
}

#[tokio::test]
async fn readers_with_another_secret_are_refused() {
    let reader = TransportConfig {
        credential: Credential::new(b"another", "a-node"),
        ..config(BYTES)
    };
    check(reader, Refusal::Secret, "the reader has another secret").await;
}

#[test]
fn readers_of_another_version_are_refused_after_their_hello() {
    let (config, count) = counting(Refusal::Version);
    let server = serve(heap(1, BYTES), config);
    let future = Terms {
        version: 77,
        ..terms(BYTES)
    };
    let (_, opening) = Asking::begin(&credential(), future).expect("randomness");
    let mut stream = dial(&server);
    stream.write_all(&opening[..32]).expect("room to send");
    let bytes = read::<WELCOME_BYTES>(&mut stream);
    let welcome = Welcome::decode(&bytes, &MAGIC).expect("a welcome");
    assert_eq!(welcome.refusal, Some(Refusal::Version));
    let mut message = String::new();
    stream.read_to_string(&mut message).expect("a message");
    assert_eq!(message.len(), usize::from(welcome.message_bytes));
    assert!(message.contains("version 77"), "{message}");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// The bytes of a good handshake, sent a second time.
#[test]
fn a_handshake_that_is_played_again_is_refused() {
    let (config, count) = counting(Refusal::Unproven);
    let server = serve(heap(1, BYTES), config);
    let (asking, opening) = Asking::begin(&credential(), terms(BYTES)).expect("randomness");
    let mut honest = dial(&server);
    honest.write_all(&opening).expect("room to send");
    let welcome = read::<WELCOME_BYTES>(&mut honest);
    let proof = read::<PROOF_BYTES>(&mut honest);
    let (proving, confirm) = asking.confirm(&welcome, &proof).expect("proved");
    honest.write_all(&confirm).expect("room to send");
    let verdict = read::<VERDICT_BYTES>(&mut honest);
    proving.accepted(&verdict).expect("accepted");
    assert_eq!(count.load(Ordering::Relaxed), 0);

    let mut replayed = dial(&server);
    replayed.write_all(&opening).expect("room to send");
    read::<{ WELCOME_BYTES + PROOF_BYTES }>(&mut replayed);
    let confirm: [u8; CONFIRM_BYTES] = confirm;
    replayed.write_all(&confirm).expect("room to send");
    let verdict = read::<VERDICT_BYTES>(&mut replayed);
    let head = verdict.first_chunk().expect("a welcome");
    let welcome = Welcome::decode(head, &MAGIC).expect("a welcome in the open");
    assert_eq!(welcome.refusal, Some(Refusal::Unproven));
    assert_eq!(replayed.read(&mut [0]).expect("the end"), 0);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_owner_that_does_not_know_the_secret_is_found_out() {
    let owner = Scripted::new(|mut stream| {
        // It takes what it hears for a proof of its own.
        let opening = read::<{ 32 + PROOF_BYTES }>(&mut stream);
        let welcome = Welcome {
            magic: MAGIC,
            version: 2,
            refusal: None,
            block_bytes: 0,
            message_bytes: 0,
        };
        let _ = stream.write_all(&welcome.encode());
        let _ = stream.write_all(&opening[32..]);
        crate::support::listen_silently(stream);
    });
    let stored = store(&*heap(1, BYTES), 1);
    let reader = Reader::new(1, BYTES);
    let outcomes = reader.outcomes(&owner.endpoint, &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    let reason = reader.transport.last_refusal(&owner.endpoint);
    let words = "the owner does not know the cluster's secret";
    assert_eq!(reason.as_deref(), Some(words));
}

#[tokio::test]
async fn one_reader_cannot_take_all_connections() {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 1);
    let config = ServerConfig {
        max_connections_per_reader: 1,
        ..server_config()
    };
    let server = serve(tier, config);
    let first = Reader::new(1, BYTES);
    first.eventually_fetches(server.endpoint(), &stored).await;
    let again = Reader::new(1, BYTES);
    let outcomes = again.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    let reason = again.transport.last_refusal(server.endpoint());
    let words = "all 1 connections of a-node are in use";
    assert!(reason.expect("a reason").contains(words));
    let other = TransportConfig {
        credential: Credential::new(b"the cluster's", "another-node"),
        ..crate::support::config(BYTES)
    };
    let other = Reader::with(other, 1);
    other.eventually_fetches(server.endpoint(), &stored).await;
    drop(first);
    again.eventually_fetches(server.endpoint(), &stored).await;
}

#[tokio::test]
async fn readers_beyond_the_bound_are_refused_until_there_is_room() {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 1);
    let config = ServerConfig {
        max_connections: 1,
        ..server_config()
    };
    let server = serve(tier, config);
    let first = Reader::new(1, BYTES);
    first.eventually_fetches(server.endpoint(), &stored).await;
    // Another connection of its own would be refused even when there is room.
    let one = TransportConfig {
        connections: 1,
        ..crate::support::config(BYTES)
    };
    let second = Reader::with(one, 1);
    let outcomes = second.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    let reason = second.transport.last_refusal(server.endpoint());
    let words = "the owner refuses: all 1 connections are in use";
    assert_eq!(reason.as_deref(), Some(words));
    drop(first);
    eventually("the first leaves", || server.connections() == 0).await;
    second.eventually_fetches(server.endpoint(), &stored).await;
    assert_eq!(second.transport.last_refusal(server.endpoint()), None);
}

#[tokio::test]
async fn an_owner_that_only_talks_nonsense_is_unreachable() {
    let owner = Scripted::new(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        crate::support::listen_silently(stream);
    });
    let tier = heap(1, BYTES);
    let stored = store(&*tier, 1);
    let reader = Reader::new(1, BYTES);
    let outcomes = reader.outcomes(&owner.endpoint, &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    reader.all_buffers_return().await;
}
