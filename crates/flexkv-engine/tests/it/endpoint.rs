//! Where the socket lies: whose folder, what modes, which leftovers, and when it goes.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use flexkv_engine::{EngineServer, ServerConfig, StartError};
use flexkv_ports::{HeapMemory, KvCache as _};

use crate::cache::TinyCache;
use crate::support::{Node, folder, keys, mode, socket_in};

fn start(path: &Path) -> Result<EngineServer, StartError> {
    let cache = TinyCache::new(4);
    EngineServer::start(path, cache.clone(), cache.arena(), ServerConfig::default())
}

#[tokio::test]
async fn folder_and_socket_are_private() {
    let outer = folder(0o755);
    let path = socket_in(&outer);
    let server = start(&path).expect("start");
    assert_eq!(mode(&outer.path().join("run")), 0o700);
    assert_eq!(mode(&path), 0o600);
    server.shutdown().await;
    assert!(!path.exists(), "the socket goes with the node");
    start(&path).expect("the same place serves again");
}

#[tokio::test]
async fn a_folder_that_others_can_enter_is_refused() {
    for open in [0o755, 0o710, 0o701, 0o770] {
        let folder = folder(open);
        let error = start(&folder.path().join("node.sock")).expect_err("open folder");
        assert!(matches!(error, StartError::FolderMode { mode, .. } if mode == open));
        let text = error.to_string();
        assert!(text.contains(&format!("{open:03o}")), "{text}");
    }
}

#[tokio::test]
async fn a_folder_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder(0o700);
    std::os::unix::fs::chown(folder.path(), Some(65_534), None).expect("chown");
    let error = start(&folder.path().join("node.sock")).expect_err("foreign folder");
    assert!(
        matches!(error, StartError::FolderOwner { owner: 65_534, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_live_socket_is_left_alone() {
    let node = Node::start(4);
    let error = start(node.server.path()).expect_err("taken");
    let path = node.server.path().display();
    assert_eq!(error.to_string(), format!("another node listens on {path}"));
    let client = node.attach().await;
    client
        .match_prefix(&keys(0..1))
        .await
        .expect("the first node serves on");
}

#[tokio::test]
async fn someone_elses_live_socket_is_left_alone() {
    let folder = folder(0o700);
    let path = folder.path().join("node.sock");
    let _listener = UnixListener::bind(&path).expect("bind");
    assert!(matches!(start(&path), Err(StartError::Taken { .. })));
    assert!(path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let folder = folder(0o700);
    let path = folder.path().join("node.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists(), "as after kill -9");
    start(&path).expect("replaced");
}

#[tokio::test]
async fn a_file_in_the_sockets_place_is_kept() {
    let folder = folder(0o700);
    let path = folder.path().join("node.sock");
    std::fs::write(&path, "notes").expect("write");
    assert!(matches!(start(&path), Err(StartError::NotA { .. })));
    assert_eq!(std::fs::read(&path).expect("read"), b"notes");
}

#[tokio::test]
async fn memory_that_cannot_be_shared_is_refused() {
    let folder = folder(0o700);
    let path = folder.path().join("node.sock");
    let heap = Arc::new(HeapMemory::new(4096));
    let started = EngineServer::start(&path, TinyCache::new(4), heap, ServerConfig::default());
    let error = started.expect_err("heap memory").to_string();
    assert!(error.contains("not a memory file"), "{error}");
}

#[tokio::test]
async fn senseless_settings_are_named() {
    let folder = folder(0o700);
    let cache = TinyCache::new(4);
    let config = ServerConfig {
        max_keys: 0,
        ..ServerConfig::default()
    };
    let path = folder.path().join("node.sock");
    let started = EngineServer::start(path, cache.clone(), cache.arena(), config);
    let error = started.expect_err("no keys").to_string();
    assert!(error.contains("`max_keys` is 0"), "{error}");
}
