//! What engines see of a node that serves them: answers, limits, its end.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use flexkv_engine::wire::{
    HEADER_BYTES, Header, Hello, MAX_BODY_BYTES, RefusalCode, Refused, Reply, Request, VERSION,
};
use flexkv_engine::{EngineClient, ServerConfig};
use flexkv_ports::conformance::{self, CacheUnderTest};
use flexkv_ports::{BoxFuture, CacheError, KvCache, LoadStatus, Ticket};
use tokio::time::timeout;

use crate::cache::{BLOCK_BYTES, NAMESPACE};
use crate::support::{Node, block, eventually, keys, store};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_keeps_the_promises_of_a_cache() {
    conformance::cache(async || {
        let node = Node::start(16);
        CacheUnderTest {
            cache: Arc::new(node.attach().await),
            slots: 16,
            namespace: NAMESPACE,
            guard: Box::new(node),
        }
    })
    .await;
}

#[tokio::test]
async fn one_engine_reads_what_another_stored() {
    let node = Node::start(8);
    let (writer, reader) = (node.attach().await, node.attach().await);
    assert_eq!(reader.block_bytes(), BLOCK_BYTES);
    assert_ne!(writer.arena().base(), reader.arena().base(), "two mappings");
    store(&writer, 0..4).await;
    drop(writer);
    let hit = reader.match_prefix(&keys(0..5)).await.expect("match");
    assert_eq!(hit.blocks, 4);
    reader.load(hit.ticket, 4, LONG.into()).await.expect("load");
    let loaded = reader.wait(hit.ticket).await.expect("wait");
    let bytes: Vec<_> = loaded
        .blocks
        .iter()
        .map(|view| view.bytes.to_vec())
        .collect();
    assert_eq!(bytes, (0..4).map(block).collect::<Vec<_>>());
}

/// News come unasked, so only who knows them gets them; removals within a moment come together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_engine_that_watches_hears_of_removals() {
    let node = Node::start(8);
    let (mut deaf, mut watching) = (Raw::greeted(&node), Raw::greeted(&node));
    let mut request = Vec::new();
    Request::Watch.encode(7, &mut request);
    watching.0.write_all(&request).expect("watch");
    let (kind, body) = watching.frame().expect("an answer");
    assert_eq!(Reply::decode(kind, &body), Ok(Reply::Done));

    let writer = node.attach().await;
    for prompt in 0..4 {
        store(&writer, 8 * prompt..8 * prompt + 8).await;
    }
    let mut gone = HashSet::new();
    while gone.len() < 24 {
        let (kind, body) = watching.frame().expect("news");
        let Ok(Reply::Removed(removed)) = Reply::decode(kind, &body) else {
            panic!("kind {kind:#x} instead of Removed");
        };
        assert_eq!(removed.lost, 0);
        gone.extend(removed.keys);
    }
    assert_eq!(gone, keys(0..24).into_iter().collect::<HashSet<_>>());

    request.clear();
    let keys = Vec::new().into();
    Request::Match { keys }.encode(1, &mut request);
    deaf.0.write_all(&request).expect("match");
    let (kind, body) = deaf.frame().expect("an answer");
    let answer = Reply::decode(kind, &body);
    assert!(
        matches!(answer, Ok(Reply::Matched(_))),
        "{answer:?} came first"
    );
}

#[tokio::test]
async fn a_wait_holds_up_no_other_request() {
    let node = Node::start(8);
    let client = node.attach().await;
    store(&client, 0..2).await;
    node.cache.set_loading(false);
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    client.load(hit.ticket, 2, LONG.into()).await.expect("load");
    let waiting = client.wait(hit.ticket);
    let others = async {
        for _ in 0..100 {
            let other = client.match_prefix(&keys(0..2)).await.expect("match");
            client.release(other.ticket).await.expect("release");
            let status = client.poll(hit.ticket).await.expect("poll");
            assert!(matches!(status, LoadStatus::Pending));
        }
        node.cache.set_loading(true);
    };
    let (loaded, ()) = tokio::join!(waiting, others);
    assert_eq!(loaded.expect("wait").blocks.len(), 2);
}

#[tokio::test]
async fn a_load_ends_by_its_deadline() {
    let node = Node::start(8);
    let client = node.attach().await;
    store(&client, 0..2).await;
    node.cache.set_loading(false);
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    let soon = Duration::from_millis(20);
    client.load(hit.ticket, 2, soon.into()).await.expect("load");
    let loaded = timeout(LONG, client.wait(hit.ticket)).await.expect("ends");
    assert_eq!(
        loaded.expect("wait").blocks.len(),
        0,
        "nothing was verified"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_large_requests_are_in_flight_at_once() {
    let node = Node::start(8);
    let client = Arc::new(node.attach().await);
    store(&client, 0..2).await;
    let mut prompt = keys(0..2);
    prompt.extend(keys(100..40_000));
    let prompt = Arc::new(prompt);
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let (client, prompt) = (client.clone(), prompt.clone());
            tokio::spawn(async move { client.match_prefix(&prompt).await })
        })
        .collect();
    let mut tickets = HashSet::new();
    for call in calls {
        let hit = call.await.expect("no panic").expect("match");
        assert_eq!(hit.blocks, 2);
        assert!(tickets.insert(hit.ticket), "two answers for one request");
    }
    assert_eq!(node.cache.tickets(), 300);
}

/// Polls a call once, so that it is sent; it cannot have been answered then.
async fn send<T>(call: &mut BoxFuture<'_, T>) {
    std::future::poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_call_dropped_before_its_answer_leaves_no_ticket_behind() {
    let node = Node::start(8);
    let client = node.attach().await;
    let prompt = keys(0..4);
    for _ in 0..20 {
        send(&mut client.match_prefix(&prompt)).await;
        send(&mut client.store(&prompt, 0)).await;
    }
    // Requests are served in order, so by then all calls before were made.
    let last = client.match_prefix(&prompt).await.expect("match");
    assert_eq!(last.ticket, Ticket(41), "every call came to the cache");
    eventually("all but the last are released", || {
        node.cache.tickets() == 1
    })
    .await;
    assert_eq!(node.cache.granted(), 0);
}

#[tokio::test]
async fn a_call_dropped_after_its_answer_leaves_no_ticket_behind() {
    let node = Node::start(8);
    let client = node.attach().await;
    let prompt = keys(0..4);
    let mut call = client.store(&prompt, 0);
    send(&mut call).await;
    // Its answer came before this one's.
    let last = client.match_prefix(&prompt).await.expect("match");
    assert_eq!((node.cache.tickets(), node.cache.granted()), (2, 4));
    drop(call);
    eventually("the grant is released", || node.cache.tickets() == 1).await;
    assert_eq!(node.cache.granted(), 0);
    client.release(last.ticket).await.expect("the last is held");
}

#[tokio::test]
async fn a_session_cannot_use_tickets_of_another() {
    let node = Node::start(8);
    let (one, other) = (node.attach().await, node.attach().await);
    let grant = one.store(&keys(0..1), 0).await.expect("store");
    let ticket = grant.ticket;
    let unknown = CacheError::UnknownTicket { ticket };
    assert_eq!(other.release(ticket).await, Err(unknown.clone()));
    assert_eq!(other.commit(ticket, &[]).await, Err(unknown));
    one.release(ticket).await.expect("it is still held");
}

#[tokio::test]
async fn a_session_ends_with_its_client_and_releases_everything() {
    let node = Node::start(8);
    let client = node.attach().await;
    store(&client, 0..2).await;
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    client.load(hit.ticket, 2, LONG.into()).await.expect("load");
    client.wait(hit.ticket).await.expect("wait");
    client.store(&keys(5..7), 0).await.expect("store");
    assert_eq!((node.cache.pins(), node.cache.granted()), (2, 2));
    drop(client);
    eventually("session ended", || node.server.sessions() == 0).await;
    let held = (
        node.cache.tickets(),
        node.cache.pins(),
        node.cache.granted(),
    );
    assert_eq!(held, (0, 0, 0));
    assert_eq!(node.cache.blocks(), 2, "what was granted only is no block");
}

#[tokio::test]
async fn a_node_that_shuts_down_is_gone_for_pending_and_later_calls() {
    let node = Node::start(8);
    let client = node.attach().await;
    store(&client, 0..2).await;
    node.cache.set_loading(false);
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    client.load(hit.ticket, 2, LONG.into()).await.expect("load");
    let pending = client.wait(hit.ticket);
    let shutdown = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.server.shutdown().await;
    };
    let (pending, ()) = timeout(LONG, async { tokio::join!(pending, shutdown) })
        .await
        .expect("nothing hangs");
    for result in [
        pending.map(|_| ()),
        client.match_prefix(&keys(0..2)).await.map(|_| ()),
        client.release(hit.ticket).await,
    ] {
        let reason = "the node shuts down".to_owned();
        assert_eq!(result, Err(CacheError::Gone { reason }));
    }
    assert!(!client.is_attached());
    assert_eq!(node.cache.tickets(), 0, "shutdown waits for the releases");
    let again = EngineClient::attach(node.folder.path().join("node.sock")).await;
    let error = again.expect_err("nobody listens").to_string();
    assert!(error.contains("node.sock"), "{error}");
}

#[tokio::test]
async fn limits_are_answered_by_name() {
    let node = Node::with(
        8,
        ServerConfig {
            max_keys: 10,
            max_tickets: 2,
            max_sessions: 1,
            max_waits: 1,
            ..ServerConfig::default()
        },
    );
    let client = node.attach().await;
    let too_many = client.match_prefix(&keys(0..11)).await;
    let error = too_many.expect_err("11 keys").to_string();
    assert!(error.contains("11 keys") && error.contains("10"), "{error}");
    let second = EngineClient::attach(node.server.path()).await;
    let error = second.expect_err("a second session");
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("all 1 sessions"), "{error}");

    node.cache.set_loading(false);
    let hit = client.match_prefix(&keys(0..1)).await.expect("match");
    client.load(hit.ticket, 1, LONG.into()).await.expect("load");
    let (first, second) = tokio::join!(client.wait(hit.ticket), async {
        let second = client.wait(hit.ticket).await;
        node.cache.set_loading(true);
        second
    });
    first.expect("the first wait");
    let error = second.expect_err("the second wait").to_string();
    assert!(error.contains("waits for 1 loads"), "{error}");

    client.match_prefix(&keys(0..1)).await.expect("2nd ticket");
    let third = client.store(&keys(0..1), 0).await;
    let error = third.expect_err("3rd ticket").to_string();
    assert!(error.contains("2 tickets"), "{error}");
    client.release(hit.ticket).await.expect("release");
    client
        .store(&keys(0..1), 0)
        .await
        .expect("there is room again");
}

/// A session without the client: greeted by hand, then as the test likes.
struct Raw(UnixStream);

impl Raw {
    fn connect(node: &Node) -> Self {
        let stream = UnixStream::connect(node.server.path()).expect("connect");
        stream.set_read_timeout(Some(LONG)).expect("time-out");
        Self(stream)
    }

    fn greeted(node: &Node) -> Self {
        let mut raw = Self::connect(node);
        raw.hello(VERSION);
        let (kind, _) = raw.frame().expect("an answer");
        assert_eq!(kind, 2, "Welcome");
        raw
    }

    fn hello(&mut self, version: u16) {
        let mut hello = Vec::new();
        Hello { version, pid: 1 }.encode(&mut hello);
        self.0.write_all(&hello).expect("hello");
    }

    fn frame(&mut self) -> std::io::Result<(u16, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        self.0.read_exact(&mut head)?;
        let header = Header::decode(&head, MAX_BODY_BYTES).expect("a frame");
        let mut body = vec![0; header.body];
        self.0.read_exact(&mut body)?;
        Ok((header.kind, body))
    }

    /// Sends bytes; the node must end the session with a reason.
    fn refusal(mut self, bytes: &[u8]) -> Refused {
        self.0.write_all(bytes).expect("write");
        let (kind, body) = self.frame().expect("a reason");
        assert_eq!(kind, Refused::KIND);
        let end = self.frame().expect_err("the session is over").kind();
        use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
        assert!(matches!(end, UnexpectedEof | ConnectionReset), "{end}");
        Refused::decode(&body).expect("a refusal")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_session_only() {
    let node = Node::start(8);
    let client = node.attach().await;
    store(&client, 0..2).await;
    let mut poll = Vec::new();
    Request::Poll { ticket: Ticket(1) }.encode(7, &mut poll);
    let mut longer = poll.clone();
    longer[0] += 1;
    longer.push(0);
    let mut reserved = poll.clone();
    reserved[6] = 1;
    let mut kind = poll.clone();
    kind[4..6].copy_from_slice(&0x7777u16.to_le_bytes());
    for (bytes, named) in [
        (&[0xff; 64][..], "over the limit"),
        (&(64u32 << 20).to_le_bytes().repeat(3)[..], "over the limit"),
        (&[0; 12][..], "shorter than its header"),
        (&longer[..], "after the last field"),
        (&reserved[..], "reserved"),
        (&kind[..], "0x7777"),
    ] {
        let refused = Raw::greeted(&node).refusal(bytes);
        assert_eq!(refused.code, RefusalCode::Protocol);
        assert!(refused.text.contains(named), "{named}: {}", refused.text);
    }
    let refused = Raw::connect(&node).refusal(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(refused.text.contains("over the limit"), "{}", refused.text);
    let mut cut = Raw::greeted(&node);
    cut.0.write_all(&poll[..poll.len() - 3]).expect("write");
    drop(cut);
    eventually("they are all gone", || node.server.sessions() == 1).await;
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    assert_eq!(hit.blocks, 2, "the other session lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_told_both_versions() {
    let node = Node::start(8);
    let mut raw = Raw::connect(&node);
    raw.hello(VERSION + 1);
    let refused = raw.refusal(&[]);
    assert_eq!(refused.code, RefusalCode::Version);
    let both = format!(
        "version {} of the local protocol, this node version {VERSION}",
        VERSION + 1
    );
    assert!(refused.text.contains(&both), "{}", refused.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_keeps_no_session() {
    let node = Node::with(
        8,
        ServerConfig {
            greeting_within: Duration::from_millis(50),
            ..ServerConfig::default()
        },
    );
    let refused = Raw::connect(&node).refusal(&[]);
    assert!(refused.text.contains("did not greet"), "{}", refused.text);
    eventually("its place is free", || node.server.sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_takes_no_answers_loses_its_session() {
    let node = Node::with(
        8,
        ServerConfig {
            answer_within: Duration::from_millis(50),
            max_tickets: 1 << 20,
            ..ServerConfig::default()
        },
    );
    let mut raw = Raw::greeted(&node);
    let mut matches = Vec::new();
    for id in 1..100_000 {
        let keys = Vec::new().into();
        Request::Match { keys }.encode(id, &mut matches);
    }
    // Fails once the session is over: the node does not read for ever what it cannot answer.
    raw.0.set_write_timeout(Some(LONG)).expect("time-out");
    let error = raw.0.write_all(&matches).expect_err("session over");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "time-out");
    eventually("its tickets are back", || node.cache.tickets() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_takes_no_ends_of_loads_loses_its_session() {
    let node = Node::with(
        8,
        ServerConfig {
            answer_within: Duration::from_millis(50),
            ..ServerConfig::default()
        },
    );
    node.cache.set_loading(false);
    let mut raw = Raw::greeted(&node);
    let mut requests = Vec::new();
    let keys = Vec::new().into();
    Request::Match { keys }.encode(1, &mut requests);
    raw.0.write_all(&requests).expect("match");
    let (_, hit) = raw.frame().expect("Matched");
    let ticket = Ticket(u64::from_le_bytes(*hit.first_chunk().expect("a ticket")));
    requests.clear();
    Request::Load {
        ticket,
        blocks: 0,
        limits: LONG.into(),
    }
    .encode(2, &mut requests);
    for id in 3..1003 {
        Request::Wait { ticket }.encode(id, &mut requests);
    }
    raw.0.write_all(&requests).expect("a thousand waits");
    raw.frame().expect("the load is started");
    node.cache.set_loading(true);
    eventually("its session is over", || node.server.sessions() == 0).await;
    assert_eq!(node.cache.tickets(), 0);
}
