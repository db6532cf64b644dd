//! What the configuration takes and what it refuses, and that the password never shows.

use std::time::Duration;

use flexkv_block::NamespaceId;

use super::RedisConfig;

fn config(url: &str, cluster: &str) -> Result<RedisConfig, String> {
    let namespace = NamespaceId::from_u128(7);
    RedisConfig::new(url, cluster, namespace).map_err(|e| e.to_string())
}

#[test]
fn takes_redis_urls() {
    for (url, address, database) in [
        ("redis://cache", "cache:6379", None),
        ("redis://10.0.0.1:7000/3", "10.0.0.1:7000", Some(3)),
        ("redis://[::1]:7000/", "[::1]:7000", None),
    ] {
        let config = config(url, "c").expect(url);
        assert_eq!(config.address(), address, "{url}");
        assert_eq!(config.server.database, database, "{url}");
    }
    for (url, address) in [
        ("redis-cluster://a:1?node=b:2", "b:2,a:1"),
        (
            "redis-sentinel://a:1/3?sentinelServiceName=main&node=b:2",
            "b:2,a:1 (sentinels of main)",
        ),
    ] {
        assert_eq!(config(url, "c").expect(url).address(), address, "{url}");
    }
    let config = config("redis://me:p%40ss@cache", "c").expect("credentials");
    assert_eq!(config.server.username.as_deref(), Some("me"));
    assert_eq!(config.server.password.as_deref(), Some("p@ss"));
}

#[test]
fn refuses_other_urls_and_says_why() {
    for (url, why) in [
        ("cache:6379", "no scheme"),
        ("http://cache", "scheme `http` is not supported"),
        ("redisss://cache", "scheme `redisss` is not supported"),
        ("redis-cluster://cache:1/2", "a cluster has no databases"),
        ("redis-sentinel://cache:1", "service name"),
        ("redis://", "host"),
        ("redis://cache:99999", "port"),
        ("redis://cache/1/2", "database"),
        ("redis://cache/300", "the database is not a number"),
        ("redis://me@cache", "a user without a password"),
    ] {
        let error = config(url, "c").expect_err(url);
        assert!(error.starts_with("redis url: "), "{url}: {error}");
        assert!(error.contains(why), "{url}: {error}");
    }
}

#[test]
fn refuses_cluster_names_that_cannot_be_in_a_key() {
    for name in ["a", "A-b_9", &"x".repeat(64)] {
        assert!(config("redis://cache", name).is_ok(), "{name}");
    }
    for name in ["", "a b", "a:b", "a{b}", "ä", &"x".repeat(65)] {
        let error = config("redis://cache", name).expect_err(name);
        assert!(error.contains(&format!("cluster name `{name}`")), "{error}");
    }
}

#[test]
fn never_shows_the_password() {
    let shown = format!("{:?}", config("redis://me:hunter2@cache", "c").expect("ok"));
    assert!(
        shown.contains("cache:6379") && shown.contains("me"),
        "{shown}"
    );
    assert!(!shown.contains("hunter2"), "{shown}");
    let refused = config("redis://me:hunter2@cache/1/2", "c").expect_err("path");
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[test]
fn refuses_time_outs_without_sense() {
    let config = config("redis://cache", "c").expect("ok");
    for (timeout, taken) in [
        (Duration::ZERO, false),
        (Duration::from_millis(1), true),
        (Duration::from_secs(3600), true),
        (Duration::MAX, false),
    ] {
        let outcome = config.clone().command_timeout(timeout);
        assert_eq!(outcome.is_ok(), taken, "{timeout:?}");
    }
}
