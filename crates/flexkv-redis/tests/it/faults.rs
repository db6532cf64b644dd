//! What the store does while the server is not well, and that it recovers by itself.

use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{MetadataStore, StoreError};
use flexkv_redis::RedisStore;
use tokio::time::{sleep, timeout};

use crate::server::{
    LONG, NOW, config, cursor, entries, names, sequences, server, store, tell, until, until_ok,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_empty_is_noticed_by_readers_and_owners() {
    let mut server = server().await;
    let store = store(&server).await;
    store
        .renew("n", Bytes::new(), "l", LONG)
        .await
        .expect("renew");
    store
        .append("l", &entries(1..3, 0), true, LONG)
        .await
        .expect("append");
    let cursors = [cursor("l", 2)];
    let reading = until_ok("reads again", async || {
        match store.read(&cursors, 10, LONG).await {
            Ok(read) if read.is_empty() => panic!("the wait ended without news"),
            read => read,
        }
    });
    let restarting = async {
        sleep(Duration::from_millis(50)).await;
        server.kill();
        let down = store.append("l", &entries(3..4, 0), false, LONG).await;
        assert!(
            matches!(down, Err(StoreError::Unavailable { .. })),
            "{down:?}"
        );
        server.restart().await.expect("restart");
        let lost = until_lost(&store).await;
        assert_eq!(lost, "l");
        let renewal = store
            .renew("n", Bytes::new(), "l", LONG)
            .await
            .expect("renew");
        assert!(!renewal.lease_kept && !renewal.log_kept, "{renewal:?}");
        store
            .append("l", &entries(3..5, 0), true, LONG)
            .await
            .expect("append");
    };
    let (read, ()) = tokio::join!(reading, restarting);
    assert_eq!(
        read[0].entries,
        entries(3..5, 0),
        "what was published again"
    );
}

/// Appends to `l` until the server says that it is gone.
async fn until_lost(store: &RedisStore) -> String {
    let news = entries(3..4, 0);
    let lost = until_ok("the log is lost", async || {
        match store.append("l", &news, false, LONG).await {
            Err(StoreError::LogLost { log }) => Ok(log),
            Ok(()) => panic!("appended to a log that was lost"),
            Err(error) => Err(error),
        }
    });
    lost.await
}

#[tokio::test]
async fn calls_fail_at_once_while_the_server_is_away() {
    let mut server = server().await;
    let store = store(&server).await;
    server.kill();
    until("the loss is noticed", async || {
        store.members().await.is_err()
    })
    .await;
    sleep(Duration::from_millis(100)).await;
    let calls = async {
        for _ in 0..1000 {
            assert!(is_refused(store.members().await));
            let read = store.read(&[cursor("l", 0)], 10, NOW).await;
            assert!(is_refused(read));
        }
    };
    // Waiting a second for each would take half an hour.
    let in_time = timeout(Duration::from_secs(120), calls).await;
    in_time.expect("calls fail at once");
    server.restart().await.expect("restart");
    until_ok("the store recovers", async || store.members().await).await;
}

fn is_refused<T>(outcome: Result<T, StoreError>) -> bool {
    outcome.is_err_and(|error| error.to_string().ends_with(": Connection refused"))
}

#[tokio::test]
async fn a_store_may_be_there_before_its_server() {
    let mut server = server().await;
    server.kill();
    let store = RedisStore::connect_lazily(config(&server.url()));
    let error = store.members().await.expect_err("nobody is there");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    server.restart().await.expect("restart");
    until_ok("the store connects", async || store.members().await).await;
    let cursors = [cursor("l", 0)];
    let read = until_ok("reads", async || store.read(&cursors, 10, NOW).await);
    assert_eq!(read.await, []);
}

#[tokio::test]
async fn a_flush_is_noticed() {
    let server = server().await;
    let store = store(&server).await;
    store
        .renew("n", Bytes::new(), "l", LONG)
        .await
        .expect("renew");
    store
        .append("l", &entries(1..3, 0), true, LONG)
        .await
        .expect("append");
    tell(&server, "FLUSHALL").await;
    let append = store.append("l", &entries(3..4, 0), false, LONG).await;
    assert!(
        matches!(append, Err(StoreError::LogLost { .. })),
        "{append:?}"
    );
    assert_eq!(names(&store).await, [""; 0]);
    let renewal = store
        .renew("n", Bytes::new(), "l", LONG)
        .await
        .expect("renew");
    assert!(!renewal.lease_kept && !renewal.log_kept, "{renewal:?}");
}

#[tokio::test]
async fn killed_connections_are_opened_again() {
    let server = server().await;
    let store = store(&server).await;
    store
        .append("l", &entries(1..2, 0), true, LONG)
        .await
        .expect("append");
    for round in 2..12 {
        tell(&server, "CLIENT KILL TYPE normal").await;
        let news = entries(round..round + 1, 0);
        until_ok("appends", async || {
            store.append("l", &news, false, LONG).await
        })
        .await;
        let cursors = [cursor("l", round - 1)];
        let read = until_ok("reads", async || store.read(&cursors, 10, NOW).await).await;
        assert_eq!(read[0].entries, news, "round {round}");
    }
    assert_eq!(sequences(&store, "l", 0).await, (1..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable_until_it_answers() {
    let server = server().await;
    let config = config(&server.url());
    let config = config.command_timeout(Duration::from_millis(200));
    let store = RedisStore::connect(config.expect("config"))
        .await
        .expect("connect");
    store
        .append("l", &entries(1..2, 0), true, LONG)
        .await
        .expect("append");
    let using = async {
        until("the server hangs", async || store.members().await.is_err()).await;
        for _ in 0..3 {
            let append = store.append("l", &entries(2..3, 0), false, LONG).await;
            assert!(
                matches!(append, Err(StoreError::Unavailable { .. })),
                "{append:?}"
            );
            let read = store.read(&[cursor("l", 0)], 10, NOW).await;
            assert!(
                matches!(read, Err(StoreError::Unavailable { .. })),
                "{read:?}"
            );
        }
    };
    // Answered when the pause is over.
    let pausing = tell(&server, "CLIENT PAUSE 5000 ALL");
    tokio::join!(using, pausing);
    let news = entries(2..3, 0);
    until_ok("appends", async || {
        store.append("l", &news, false, LONG).await
    })
    .await;
    until_ok("reads", async || {
        store.read(&[cursor("l", 0)], 10, NOW).await
    })
    .await;
    assert_eq!(sequences(&store, "l", 0).await, [1, 2]);
}

#[tokio::test]
async fn a_password_set_later_is_told_and_taken_back() {
    let mut server = server().await;
    let store = store(&server).await;
    let commands = "CONFIG SET requirepass later\r\nCLIENT KILL TYPE normal";
    tell(&server, commands).await;
    until("the store is denied", async || {
        matches!(store.members().await, Err(StoreError::Denied { .. }))
    })
    .await;
    server.restart().await.expect("restart without a password");
    until_ok("the store recovers", async || store.members().await).await;
}
