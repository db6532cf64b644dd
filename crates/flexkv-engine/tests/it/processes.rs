//! Engines as processes of their own: killed in the middle, or of another user.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use flexkv_block::Checksum;
use flexkv_engine::{EngineClient, EngineServer, ServerConfig};
use flexkv_ports::{Filled, KvCache as _};
use rustix::process::Uid;

use crate::cache::{BLOCK_BYTES, TinyCache};
use crate::support::{Node, Process, block, eventually, folder, keys, store};

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Not a test by itself: what a child process of the tests below does.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var("FLEXKV_TEST_ROLE") else {
        return;
    };
    let socket = PathBuf::from(std::env::var_os("FLEXKV_TEST_SOCKET").expect("a socket"));
    if role == "nobody" {
        let uid = Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("become nobody");
    }
    if role == "copies" {
        let told = crate::copier::copies_and_counts_threads(&socket);
        return writeln!(std::io::stdout(), "{told}").expect("stdout");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let attached = EngineClient::attach(&socket).await;
        if role == "nobody" {
            let found = attached.map(|client| client.block_bytes());
            writeln!(std::io::stdout(), "attached: {found:?}").expect("stdout");
        } else {
            hold_everything(&attached.expect("attach")).await;
        }
    });
}

/// Commits block 2, pins blocks 0 and 1, half-fills block 3, waits for a load, until killed.
async fn hold_everything(client: &EngineClient) {
    let hit = client.match_prefix(&keys(0..2)).await.expect("match");
    client
        .load(hit.ticket, 2, Duration::from_secs(60).into())
        .await
        .expect("load");
    client.wait(hit.ticket).await.expect("wait");
    let grant = client.store(&keys(0..4), 2).await.expect("store");
    let slots: Vec<_> = grant.slots.iter().flatten().collect();
    slots[0].write(0, &block(2));
    slots[1].write(0, &block(3)[..BLOCK_BYTES / 2]);
    let checksum = Checksum::of(&block(2));
    let filled = [Filled { index: 0, checksum }];
    client.commit(grant.ticket, &filled).await.expect("commit");
    client.match_prefix(&keys(0..1)).await.expect("match");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_holds_nothing_any_more() {
    let node = Node::start(8);
    let survivor = node.attach().await;
    store(&survivor, 0..2).await;
    let kept = survivor.match_prefix(&keys(0..2)).await.expect("match");
    let mut engine = Process::start("hold", node.server.path());
    eventually("the engine holds its tickets", || node.cache.tickets() == 4).await;
    assert_eq!((node.cache.pins(), node.cache.granted()), (2, 1));
    assert_eq!(node.cache.blocks(), 3);

    engine.kill();
    eventually("its session is over", || node.server.sessions() == 1).await;
    let held = (
        node.cache.tickets(),
        node.cache.pins(),
        node.cache.granted(),
    );
    assert_eq!(held, (1, 0, 0), "only the survivor's match is left");
    let hit = survivor.match_prefix(&keys(0..4)).await.expect("match");
    assert_eq!(hit.blocks, 3, "the half-written block never appeared");
    survivor.release(kept.ticket).await.expect("still held");
}

/// A node that users in `allowed` may use too, in a folder that all can search.
fn open_node(allowed: Vec<u32>) -> (EngineServer, tempfile::TempDir) {
    let folder = folder(0o711);
    let cache = TinyCache::new(4);
    let config = ServerConfig {
        allowed_uids: allowed,
        ..ServerConfig::default()
    };
    let path = folder.path().join("node.sock");
    let server = EngineServer::start(path, cache.clone(), cache.arena(), config);
    (server.expect("start"), folder)
}

async fn attach_as_nobody(allowed: u32) -> String {
    let (server, _folder) = open_node(vec![allowed]);
    let child = Process::start("nobody", server.path());
    let output = tokio::task::spawn_blocking(|| child.output());
    output.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_refused_unless_listed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let output = attach_as_nobody(12_345).await;
    let refused = "uid 65534 may not attach to this node, which runs as uid 0";
    assert!(output.contains(refused), "{output}");
    let output = attach_as_nobody(NOBODY).await;
    let attached = format!("attached: Ok({BLOCK_BYTES})");
    assert!(output.contains(&attached), "{output}");
}
