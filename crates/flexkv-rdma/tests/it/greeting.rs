//! Who is let in, and that nobody else learns where memory lies.

use flexkv_block::NamespaceId;
use flexkv_handshake::{Asking, Terms};
use flexkv_ports::{Suspect, Transport as _};
use flexkv_rdma::{RdmaConfig, RdmaServer, RdmaServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::proxy::Proxy;
use crate::support::{
    BYTES, NAMESPACE, Owner, Reader, all_fetched, all_unreachable, arena, arena_of, config,
    credential, eventually, nic, store,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_told_why() {
    let owner = Owner::with(2, BYTES);
    let endpoint = owner.server.endpoint();
    let wrong = RdmaConfig {
        credential: credential("wrong"),
        ..config()
    };
    let elsewhere = arena_of(nic(), NamespaceId::from_u128(1), 2, BYTES);
    for (reader, words) in [
        (Reader::with(wrong, arena(2, BYTES)), "another secret"),
        (Reader::with(config(), elsewhere), "is not served here"),
        (Reader::new(2, 4096), "20000 bytes here, not 4096"),
    ] {
        assert!(all_unreachable(
            &reader.fetch(&endpoint, &owner.stored).await
        ));
        let reason = reader.transport.last_refusal(&endpoint).expect("a reason");
        assert!(reason.contains(words), "`{reason}` does not say `{words}`");
        assert_eq!(reader.transport.counts().connections, 0);
        reader.has_all_buffers().await;
    }
    eventually("no reader stays", || owner.server.readers() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beyond_the_bound_are_refused_until_one_goes() {
    let (tier, registered) = arena(2, BYTES);
    let stored = store(&tier, 2);
    let one = RdmaServerConfig {
        max_readers: 1,
        ..RdmaServerConfig::new(credential("s"))
    };
    let server = RdmaServer::start(([127, 0, 0, 1], 0).into(), registered, one);
    let server = server.expect("a server");
    let first = Reader::new(2, BYTES);
    assert!(all_fetched(&first.fetch(&server.endpoint(), &stored).await));
    assert_eq!((first.transport.connected(), server.readers()), (1, 1));
    assert_eq!(first.transport.last_refusal(&server.endpoint()), None);
    let second = Reader::new(2, BYTES);
    assert!(all_unreachable(
        &second.fetch(&server.endpoint(), &stored).await
    ));
    let reason = second.transport.last_refusal(&server.endpoint());
    let reason = reason.expect("a reason");
    assert!(
        reason.contains("all 1 places for readers are taken"),
        "{reason}"
    );
    drop(first);
    eventually("the place is free", || server.readers() == 0).await;
    let third = Reader::new(2, BYTES);
    assert!(all_fetched(&third.fetch(&server.endpoint(), &stored).await));
}

fn terms() -> Terms {
    Terms {
        magic: *b"FKV-RDM\n",
        version: 1,
        block_bytes: BYTES as u32,
        namespace: NAMESPACE,
    }
}

/// Sends these bytes, and gives all that the owner says until it closes the connection.
async fn said(owner: &Owner, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(owner.server.address())
        .await
        .expect("connected");
    stream.write_all(bytes).await.expect("sent");
    let mut said = Vec::new();
    let reading = tokio::time::timeout(crate::support::DEADLINE, stream.read_to_end(&mut said));
    // A connection that is reset has ended too.
    let _ = reading.await.expect("the owner closes the connection");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keys_are_for_those_who_proved_themselves() {
    let owner = Owner::with(1, BYTES);
    let mut offer = vec![0; 40];
    offer[..4].copy_from_slice(b"FKRO");
    offer[14..16].copy_from_slice(&[3, 2]);
    offer[32] = 16;
    // Without a greeting, with a greeting of another secret, and with one that was listened to: its
    // opening is good, but what is played then confirms nothing.
    let (_, wrong) = Asking::begin(&credential("wrong"), terms()).expect("begun");
    let (_, right) = Asking::begin(&credential("s"), terms()).expect("begun");
    let confirmation = [7; 16];
    for opening in [
        offer.clone(),
        [&wrong[..], &offer].concat(),
        [&right[..], &confirmation, &offer].concat(),
    ] {
        let mut opening = opening;
        opening.resize(opening.len().max(64), 0);
        let said = said(&owner, &opening).await;
        let answer = said
            .windows(4)
            .any(|bytes| bytes == b"FKRA" || bytes == b"FKVA");
        assert!(!answer, "the owner tells a stranger where its memory lies");
    }
    eventually("no reader stays", || owner.server.readers() == 0).await;
}

/// After its introduction a reader may report blocks, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_says_what_it_has_no_right_to_say_is_let_go() {
    let owner = Owner::with(2, BYTES);
    let proxy = Proxy::before(owner.server.address()).await;
    let reader = Reader::new(2, BYTES);
    let got = reader.fetch(&proxy.endpoint, &owner.stored).await;
    assert!(all_fetched(&got));
    let (location, n) = owner.stored[0];
    let key = crate::support::key(n);
    let suspect = Suspect { location, key };
    reader.transport.report(&proxy.endpoint, suspect);
    let got = reader.fetch(&proxy.endpoint, &owner.stored).await;
    assert!(all_fetched(&got));
    assert_eq!(reader.transport.counts().connections, 1);
    // The same with its first byte changed on the way.
    proxy.garble();
    reader.transport.report(&proxy.endpoint, suspect);
    eventually("the reader is let go", || owner.server.readers() == 0).await;
    eventually("and notices", || reader.transport.connected() == 0).await;
    let got = reader.fetch(&proxy.endpoint, &owner.stored).await;
    assert!(all_fetched(&got), "it may come again");
}
