//! Who may connect, and what a refused reader learns.

use std::io::Read as _;

use flexkv_block::NamespaceId;
use flexkv_ports::FetchOutcome;
use flexkv_tcp::wire::{Hello, Refusal, WELCOME_BYTES, Welcome};
use flexkv_tcp::{ServerConfig, TransportConfig};

use crate::support::{
    DEADLINE, NAMESPACE, Reader, Scripted, config, dial, eventually, heap, hello, serve, store,
};

const BYTES: usize = 4096;

/// A reader with this configuration is refused with these words, then an ordinary one served.
async fn check(reader: TransportConfig, words: &str) {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 2);
    let server = serve(tier, ServerConfig::new(NAMESPACE));
    let refused = Reader::with(reader, 2);
    let outcomes = refused.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable; 2]);
    let reason = refused.transport.last_refusal(server.endpoint());
    let reason = reason.expect("a reason");
    assert!(reason.contains(words), "`{reason}` does not say `{words}`");

    let welcome = Reader::new(2, BYTES);
    welcome.eventually_fetches(server.endpoint(), &stored).await;
    assert_eq!(welcome.transport.last_refusal(server.endpoint()), None);
}

#[tokio::test]
async fn readers_of_another_namespace_are_refused() {
    let other = TransportConfig::new(NamespaceId::from_u128(0xbad), BYTES as u32);
    check(other, "namespace 00000000000000000000000000000bad").await;
}

#[tokio::test]
async fn readers_of_another_block_size_are_refused() {
    check(config(8192), "4096 bytes here, not 8192").await;
}

#[test]
fn readers_of_another_version_are_refused() {
    let server = serve(heap(1, BYTES), ServerConfig::new(NAMESPACE));
    let future = Hello {
        version: 77,
        ..hello(BYTES)
    };
    let mut stream = dial(&server, &future);
    let mut bytes = [0; WELCOME_BYTES];
    stream.read_exact(&mut bytes).expect("a welcome");
    let welcome = Welcome::decode(&bytes).expect("a welcome");
    assert_eq!(welcome.refusal, Some(Refusal::Version));
    let mut message = String::new();
    stream.read_to_string(&mut message).expect("a message");
    assert_eq!(message.len(), usize::from(welcome.message_bytes));
    assert!(message.contains("version 77"), "{message}");
}

#[tokio::test]
async fn readers_beyond_the_bound_are_refused_until_there_is_room() {
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 1);
    let config = ServerConfig {
        max_connections: 1,
        ..ServerConfig::new(NAMESPACE)
    };
    let server = serve(tier, config);
    let first = Reader::new(1, BYTES);
    first.eventually_fetches(server.endpoint(), &stored).await;
    let second = Reader::new(1, BYTES);
    let outcomes = second.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    let reason = second.transport.last_refusal(server.endpoint());
    assert_eq!(reason.as_deref(), Some("all 1 connections are in use"));
    drop(first);
    eventually("the first leaves", || server.connections() == 0).await;
    second.eventually_fetches(server.endpoint(), &stored).await;
    assert_eq!(second.transport.last_refusal(server.endpoint()), None);
}

#[tokio::test]
async fn an_owner_that_only_talks_nonsense_is_unreachable() {
    let owner = Scripted::new(|mut stream| {
        use std::io::Write as _;
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
