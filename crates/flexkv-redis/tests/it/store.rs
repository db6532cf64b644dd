//! What the store does while the server is well.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{LogEntry, MetadataStore, StoreError};
use flexkv_redis::RedisStore;
use flexkv_redis::local::LocalRedis;
use tokio::time::timeout;

use crate::server::{
    LONG, NOW, config, conforms, cursor, entries, in_cluster, names, sequences, server, store,
    tell, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_promises_of_the_port() {
    let servers = Arc::new(vec![server().await]);
    let url = servers[0].url();
    conforms(&servers, || config(&url)).await;
}

#[tokio::test]
async fn says_at_once_that_a_password_is_wrong_or_missing() {
    let server = LocalRedis::start_with_password("right-1").await;
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    assert!(RedisStore::connect(config(&server.url())).await.is_ok());
    for credentials in [":wrong@", "", "nobody:right-1@"] {
        let url = format!("redis://{credentials}127.0.0.1:{}", server.port());
        let error = RedisStore::connect(config(&url)).await.expect_err(&url);
        let text = error.to_string();
        assert!(matches!(error, StoreError::Denied { .. }), "{text}");
        assert!(
            text.contains(&format!("127.0.0.1:{}", server.port())),
            "{text}"
        );
        assert!(!text.contains("wrong") && !text.contains("right"), "{text}");
        let lazy = RedisStore::connect_lazily(config(&url));
        let error = lazy.members().await.expect_err("no members for strangers");
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn says_at_once_that_the_server_cannot_be_reached() {
    let mut gone = server().await;
    gone.kill();
    let url = gone.url();
    let error = RedisStore::connect(config(&url))
        .await
        .expect_err("no server");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let expected = format!("cannot be reached: redis at 127.0.0.1:{}:", gone.port());
    assert!(error.to_string().contains(&expected), "{error}");
}

#[tokio::test]
async fn says_that_the_database_does_not_exist() {
    let server = server().await;
    let url = format!("{}/200", server.url());
    let error = RedisStore::connect(config(&url))
        .await
        .expect_err("no database 200");
    assert!(
        error.to_string().contains("DB index is out of range"),
        "{error}"
    );
}

#[tokio::test]
async fn namespaces_and_clusters_on_one_server_do_not_meet() {
    let server = server().await;
    let url = server.url();
    let configs = [("a", 1), ("a", 2), ("b", 1)].map(|(c, n)| in_cluster(&url, c, n));
    let mut stores = Vec::new();
    for (i, config) in configs.into_iter().enumerate() {
        let store = RedisStore::connect(config).await.expect("connect");
        let record = Bytes::from(vec![i as u8]);
        let renewal = store.renew("n", record, "l", LONG).await.expect("renew");
        assert!(!renewal.lease_kept, "store {i} sees another's lease");
        let first = i as u64 + 1;
        let made = store
            .append("l", &entries(first..first + 1, 0), true, LONG)
            .await;
        made.expect("append");
        stores.push(store);
    }
    for (i, store) in stores.iter().enumerate() {
        let members = store.members().await.expect("members");
        assert_eq!(members.len(), 1, "{members:?}");
        assert_eq!(members[0].record[..], [i as u8]);
        assert_eq!(sequences(store, "l", 0).await, [i as u64 + 1]);
    }
    stores[0].leave("n", "l").await.expect("leave");
    assert_eq!(names(&stores[1]).await, ["n"]);
    assert_eq!(sequences(&stores[2], "l", 0).await, [3]);
}

#[tokio::test]
async fn everything_expires_and_members_are_cleaned_up() {
    let server = server().await;
    let store = store(&server).await;
    let short = Duration::from_millis(300);
    let made = store.append("l", &entries(1..3, 0), true, short).await;
    made.expect("append");
    let renewal = store
        .renew("n", Bytes::new(), "l", short)
        .await
        .expect("renew");
    assert!(!renewal.lease_kept && renewal.log_kept);
    assert_eq!(names(&store).await, ["n"]);
    for key in tell(&server, "KEYS *")
        .await
        .split("\r\n")
        .filter(|l| l.starts_with("flexkv"))
    {
        let left = tell(&server, &format!("PTTL {key}")).await;
        let left: i64 = left.trim_start_matches(':').parse().expect("a time");
        let set = key.ends_with(":members") || key.ends_with(":changes");
        assert!(
            left > 0 && (set || left <= 300),
            "{key} expires in {left} ms"
        );
    }
    until("the lease is gone", async || names(&store).await.is_empty()).await;
    assert_eq!(tell(&server, "KEYS *:lease:*").await, "*0");
    until("the log is gone", async || {
        tell(&server, "DBSIZE").await == ":0"
    })
    .await;
}

#[tokio::test]
async fn a_big_log_is_read_in_pieces() {
    let server = server().await;
    let store = store(&server).await;
    let given = entries(1..1001, 10_000);
    store
        .append("big", &given, true, LONG)
        .await
        .expect("append");
    let mut read: Vec<LogEntry> = Vec::new();
    while read.len() < given.len() {
        let after = read.last().map_or(0, |entry| entry.sequence);
        let piece = store
            .read(&[cursor("big", after)], 64, NOW)
            .await
            .expect("read");
        let entries = piece.into_iter().flat_map(|read| read.entries);
        let before = read.len();
        read.extend(entries);
        let got = read.len() - before;
        assert!((1..=64).contains(&got), "{got} entries in one piece");
    }
    assert!(read == given, "other bytes than were appended");
}

#[tokio::test]
async fn a_second_reader_is_not_held_up_by_the_first() {
    let server = server().await;
    let store = store(&server).await;
    store
        .append("l", &entries(1..2, 0), true, LONG)
        .await
        .expect("append");
    let waiting = [cursor("nothing", 0)];
    let first = store.read(&waiting, 10, LONG);
    let second = async {
        tokio::task::yield_now().await;
        let cursors = [cursor("l", 0)];
        let wait = Duration::from_millis(50);
        let read = store.read(&cursors, 10, wait);
        timeout(Duration::from_secs(20), read).await
    };
    tokio::select! {
        read = first => panic!("nothing was there to read: {read:?}"),
        read = second => assert_eq!(read.expect("in time").expect("read").len(), 1),
    }
    assert_eq!(
        sequences(&store, "l", 0).await,
        [1],
        "after a read was dropped"
    );
}

#[tokio::test]
async fn waits_without_cursors() {
    let server = server().await;
    let store = store(&server).await;
    let begun = tokio::time::Instant::now();
    let wait = Duration::from_millis(50);
    assert_eq!(store.read(&[], 10, wait).await, Ok(vec![]));
    assert_eq!(store.read(&[cursor("l", 0)], 0, wait).await, Ok(vec![]));
    assert!(begun.elapsed() >= 2 * wait);
}

#[tokio::test]
async fn foreign_entries_do_not_stop_a_reader() {
    let server = server().await;
    let store = store(&server).await;
    store
        .append("l", &entries(1..2, 0), true, LONG)
        .await
        .expect("append");
    let keys = tell(&server, "KEYS *:log:l").await;
    let key = keys.lines().last().expect("a key");
    for id in ["2-0", "2-7"] {
        tell(&server, &format!("XADD {key} {id} a b c d")).await;
    }
    store
        .append("l", &entries(3..4, 0), false, LONG)
        .await
        .expect("append");
    assert_eq!(sequences(&store, "l", 0).await, [1, 2, 3]);
    assert_eq!(sequences(&store, "l", 2).await, [3]);
    let read = store.read(&[cursor("l", 1)], 1, NOW).await.expect("read");
    assert!(read[0].entries[0].bytes.is_empty(), "{read:?}");
}

#[tokio::test]
async fn dropping_a_store_closes_its_connections() {
    let server = server().await;
    let clients = async || {
        let list = tell(&server, "CLIENT LIST").await;
        list.lines().filter(|line| line.contains("addr=")).count() - 1
    };
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let (clients_before, tasks_before) = (clients().await, tasks());
    for _ in 0..5 {
        let store = store(&server).await;
        let cursors = [cursor("l", 0)];
        let read = store.read(&cursors, 10, LONG);
        let read = timeout(Duration::from_millis(20), read).await;
        assert!(read.is_err(), "nothing was there to read");
    }
    until("connections are closed", async || {
        clients().await == clients_before
    })
    .await;
    until("tasks have ended", async || tasks() == tasks_before).await;
}

#[tokio::test]
async fn a_full_server_is_full_and_keeps_what_is_renewed() {
    let server = server().await;
    let store = store(&server).await;
    let old = Bytes::from_static(b"old");
    store
        .renew("n", old.clone(), "l", LONG)
        .await
        .expect("renew");
    store
        .append("l", &entries(1..2, 0), true, LONG)
        .await
        .expect("append");
    tell(&server, "CONFIG SET maxmemory 1").await;
    let soon = Duration::from_secs(60);
    let errors = [
        store
            .renew("n", Bytes::from_static(b"new"), "l", soon)
            .await
            .map(drop),
        store.append("l", &entries(2..3, 0), false, LONG).await,
        store.append("new", &entries(1..2, 0), true, LONG).await,
    ];
    for error in errors {
        assert!(matches!(error, Err(StoreError::Full { .. })), "{error:?}");
    }
    assert_eq!(store.members().await.expect("members")[0].record, old);
    assert_eq!(sequences(&store, "l", 0).await, [1]);
    let key = "flexkv:{it:00000000000000000000000000000001}:lease:n";
    let left = tell(&server, &format!("PTTL {key}")).await;
    let left: u64 = left.trim_start_matches(':').parse().expect("a time");
    assert!(left <= 60_000, "the lease was not renewed: {left} ms left");
    tell(&server, "CONFIG SET maxmemory 0").await;
    store
        .append("l", &entries(2..3, 0), false, LONG)
        .await
        .expect("append");
}

#[tokio::test]
async fn a_renewal_tells_that_the_end_of_a_log_was_lost() {
    let server = server().await;
    let store = store(&server).await;
    let kept = async || {
        let renewed = store.renew("n", Bytes::new(), "l", LONG).await;
        renewed.expect("renew").log_kept
    };
    store
        .append("l", &entries(1..6, 0), true, LONG)
        .await
        .expect("append");
    assert!(kept().await);
    let keys = tell(&server, "KEYS *:log:l").await;
    let key = keys.lines().last().expect("a key");
    assert_eq!(tell(&server, &format!("XDEL {key} 4-0 5-0")).await, ":2");
    assert!(!kept().await);
    let lost = store.append("l", &entries(6..7, 0), false, LONG).await;
    assert!(matches!(lost, Err(StoreError::LogLost { .. })), "{lost:?}");
}
