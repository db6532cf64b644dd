//! A user who may do only what `docs/protocol.md` says a node needs.

use std::sync::Arc;

use bytes::Bytes;
use flexkv_ports::{MetadataStore, StoreError};
use flexkv_redis::{RedisConfig, RedisStore};

use crate::server::{LONG, NOW, conforms, cursor, in_cluster, server, tell};

/// What `docs/protocol.md` lists.
const COMMANDS: &str = "+auth +ping +select +client|id +info +eval +exists +get +set +mget +unlink \
                        +pexpire +zadd +zrange +zrem +zremrangebyrank +zscore +xadd +xdel +xlen \
                        +xrange +xread";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_what_the_protocol_lists_can_do_everything() {
    let server = server().await;
    let url = format!("redis://node:pw@127.0.0.1:{}", server.port());
    let user = format!("ACL SETUSER node on >pw ~flexkv:* {COMMANDS}");
    assert_eq!(tell(&server, &user).await, "+OK");
    let servers = Arc::new(vec![server]);
    conforms(&servers, || in_cluster(&url, "it", 1)).await;
}

#[tokio::test]
async fn a_user_of_one_cluster_cannot_touch_another() {
    let server = server().await;
    let url = format!("redis://node:pw@127.0.0.1:{}", server.port());
    // Redis takes a brace in a pattern as it is.
    let user = format!("ACL SETUSER node on >pw ~flexkv:{{mine:* {COMMANDS}");
    assert_eq!(tell(&server, &user).await, "+OK");
    let mine = RedisStore::connect(in_cluster(&url, "mine", 1)).await;
    let mine = mine.expect("connect");
    let renewed = mine.renew("n", Bytes::new(), "l", LONG).await;
    renewed.expect("may renew");
    let other = RedisStore::connect(in_cluster(&url, "other", 1)).await;
    let other = other.expect("connect");
    let denied = other.renew("n", Bytes::new(), "l", LONG).await;
    assert!(
        matches!(denied, Err(StoreError::Denied { .. })),
        "{denied:?}"
    );
    let denied = other.members().await;
    assert!(
        matches!(denied, Err(StoreError::Denied { .. })),
        "{denied:?}"
    );
}

#[tokio::test]
async fn a_user_without_rights_is_denied() {
    let server = server().await;
    tell(
        &server,
        "ACL SETUSER reader on >pw ~flexkv:* +@read +@connection",
    )
    .await;
    let url = format!("redis://reader:pw@127.0.0.1:{}", server.port());
    let config: RedisConfig = in_cluster(&url, "it", 1);
    let store = RedisStore::connect(config).await.expect("may connect");
    assert_eq!(store.read(&[cursor("l", 0)], 10, NOW).await, Ok(vec![]));
    let error = store.renew("n", Bytes::new(), "l", LONG).await;
    assert!(matches!(error, Err(StoreError::Denied { .. })), "{error:?}");
    let error = store.members().await;
    assert!(matches!(error, Err(StoreError::Denied { .. })), "{error:?}");
}
