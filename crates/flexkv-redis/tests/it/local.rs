//! The private server itself.

use std::path::Path;

use flexkv_redis::local::{LocalRedis, LocalRedisError};

use crate::server::{server, tell};

#[tokio::test]
async fn restarts_empty_on_the_same_port() {
    let mut server = server().await;
    let port = server.port();
    tell(&server, "SET a 1").await;
    server.restart().await.expect("restart");
    assert_eq!(server.port(), port);
    assert_eq!(tell(&server, "DBSIZE").await, ":0");
    server.kill();
    server.kill();
    server.restart().await.expect("restart after a kill");
    assert_eq!(tell(&server, "PING").await, "+PONG");
}

#[tokio::test]
async fn leaves_nothing_behind() {
    let server = server().await;
    let info = tell(&server, "INFO server").await;
    let process = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"));
    let process = format!("/proc/{}", process.expect("a process id").trim());
    let directory = tell(&server, "CONFIG GET dir").await;
    let directory = directory.lines().last().expect("a directory").to_owned();
    assert!(Path::new(&process).exists() && Path::new(&directory).exists());
    drop(server);
    assert!(!Path::new(&process).exists(), "the process is still there");
    assert!(
        !Path::new(&directory).exists(),
        "{directory} is still there"
    );
}

#[tokio::test]
async fn asks_for_its_password_and_refuses_one_it_cannot_write() {
    let server = LocalRedis::start_with_password("s3cret-_").await;
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    let answer = tell(&server, "DBSIZE").await;
    assert!(answer.starts_with("-NOAUTH"), "{answer}");
    assert!(server.url().contains(":s3cret-_@"));
    let refused = LocalRedis::start_with_password("a b").await;
    assert!(matches!(refused, Err(LocalRedisError::Password)));
}

#[tokio::test]
async fn says_that_the_port_is_taken() {
    let server = server().await;
    let second = LocalRedis::start_on(Some(server.port()), None).await;
    let error = second.expect_err("the port is taken").to_string();
    assert!(error.contains(&server.port().to_string()), "{error}");
    assert!(error.contains("Address already in use"), "{error}");
    assert_eq!(tell(&server, "PING").await, "+PONG");
}
