//! What the tests share: a private server, stores on it, and a way to talk to it behind their back.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flexkv_block::NamespaceId;
use flexkv_ports::conformance::{StoreUnderTest, store as conformance};
use flexkv_ports::{LogCursor, LogEntry, MetadataStore, StoreError};
use flexkv_redis::local::LocalRedis;
use flexkv_redis::{RedisConfig, RedisStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Outlasts every test.
pub(crate) const LONG: Duration = Duration::from_secs(600);
/// No waiting.
pub(crate) const NOW: Duration = Duration::ZERO;
/// Polls for this long before a wait has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A private server, or a failure that says how to get one.
pub(crate) async fn server() -> LocalRedis {
    let server = LocalRedis::start().await;
    server.unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn config(url: &str) -> RedisConfig {
    in_cluster(url, "it", 1)
}

pub(crate) fn in_cluster(url: &str, cluster: &str, namespace: u128) -> RedisConfig {
    let namespace = NamespaceId::from_u128(namespace);
    RedisConfig::new(url, cluster, namespace).expect("config")
}

/// A store that is connected.
pub(crate) async fn store(server: &LocalRedis) -> RedisStore {
    let store = RedisStore::connect(config(&server.url())).await;
    store.expect("connect")
}

/// Sends one command, words without spaces, and returns what came back.
pub(crate) async fn tell(server: &LocalRedis, command: &str) -> String {
    let talking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await?;
        let line = format!("{command}\r\nQUIT\r\n");
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, talking).await.expect("an answer");
    let answer = answer.expect("the server talks");
    let answer = answer.strip_suffix("+OK\r\n").unwrap_or(&answer);
    answer.trim_end().to_owned()
}

/// Tries until it succeeds.
pub(crate) async fn until_ok<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut last = None;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {last:?}");
}

/// Polls until `done`.
pub(crate) async fn until<F>(what: &str, mut done: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let polling = async {
        while !done().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, polling).await.expect(what);
}

/// Entries with these sequence numbers, each with its own content of `bytes` bytes or more.
pub(crate) fn entries(sequences: std::ops::Range<u64>, bytes: usize) -> Vec<LogEntry> {
    let entry = |sequence| LogEntry {
        sequence,
        bytes: Bytes::from(format!("entry {sequence:>bytes$}")),
    };
    sequences.map(entry).collect()
}

/// The sequence numbers in `log` after `after`, read without waiting.
pub(crate) async fn sequences(store: &RedisStore, log: &str, after: u64) -> Vec<u64> {
    let read = store.read(&[cursor(log, after)], 1000, NOW).await;
    let read = read.expect("read");
    let entries = read.into_iter().flat_map(|read| read.entries);
    entries.map(|entry| entry.sequence).collect()
}

pub(crate) fn cursor(log: &str, after: u64) -> LogCursor {
    let log = log.to_owned();
    LogCursor { log, after }
}

/// The names of all members, sorted.
pub(crate) async fn names(store: &RedisStore) -> Vec<String> {
    let members = store.members().await.expect("members");
    let mut names: Vec<_> = members.into_iter().map(|member| member.name).collect();
    names.sort();
    names
}

/// Runs the suite of the port on `store`, which is on `servers`.
pub(crate) async fn conforms(servers: &Arc<Vec<LocalRedis>>, config: impl Fn() -> RedisConfig) {
    let flush = |servers: Arc<Vec<LocalRedis>>| async move {
        for server in &*servers {
            tell(server, "FLUSHALL").await;
        }
    };
    conformance(async || {
        flush(servers.clone()).await;
        let store = RedisStore::connect(config()).await.expect("connect");
        let servers = servers.clone();
        StoreUnderTest {
            store: Arc::new(store),
            flush: Box::new(move || Box::pin(flush(servers.clone())) as _),
        }
    })
    .await;
}
