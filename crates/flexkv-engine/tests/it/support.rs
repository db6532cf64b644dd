//! What the tests share: a served cache in a folder of its own, child processes, polling.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum};
use flexkv_engine::{EngineClient, EngineServer, ServerConfig};
use flexkv_ports::{Filled, KvCache as _};
use tempfile::TempDir;

use crate::cache::{BLOCK_BYTES, TinyCache};

/// A node of the test's own.
pub(crate) struct Node {
    pub(crate) cache: Arc<TinyCache>,
    pub(crate) server: EngineServer,
    /// Removed last, with whatever is in it.
    pub(crate) folder: TempDir,
}

impl Node {
    pub(crate) fn start(slots: usize) -> Self {
        Self::with(slots, ServerConfig::default())
    }

    pub(crate) fn with(slots: usize, config: ServerConfig) -> Self {
        let folder = folder(0o700);
        let cache = TinyCache::new(slots);
        let path = folder.path().join("node.sock");
        let server = EngineServer::start(path, cache.clone(), cache.arena(), config);
        Self {
            cache,
            server: server.expect("the service starts"),
            folder,
        }
    }

    pub(crate) async fn attach(&self) -> EngineClient {
        EngineClient::attach(self.server.path())
            .await
            .expect("attach")
    }
}

/// A new folder.
pub(crate) fn folder(mode: u32) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(folder.path(), permissions).expect("its mode");
    folder
}

/// A socket's path below a folder that does not exist yet.
pub(crate) fn socket_in(folder: &TempDir) -> PathBuf {
    folder.path().join("run").join("node.sock")
}

pub(crate) fn mode(path: &Path) -> u32 {
    let found = std::fs::symlink_metadata(path).expect("it exists");
    found.permissions().mode() & 0o777
}

/// Keys of a prompt of test blocks.
pub(crate) fn keys(blocks: std::ops::Range<u128>) -> Vec<BlockKey> {
    blocks.map(|n| BlockKey::from_u128(n << 64 | 77)).collect()
}

/// The bytes of a test block.
pub(crate) fn block(n: u8) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|at| n ^ (at % 251) as u8).collect()
}

/// Stores the blocks as one prompt and releases the grant.
pub(crate) async fn store(client: &EngineClient, blocks: std::ops::Range<u8>) {
    let keys = keys(blocks.start.into()..blocks.end.into());
    let grant = client.store(&keys, 0).await.expect("store");
    let mut filled = Vec::new();
    for (index, n) in blocks.enumerate() {
        let bytes = block(n);
        grant.slots[index]
            .as_ref()
            .expect("a slot")
            .write(0, &bytes);
        let checksum = Checksum::of(&bytes);
        filled.push(Filled { index, checksum });
    }
    client.commit(grant.ticket, &filled).await.expect("commit");
    client.release(grant.ticket).await.expect("release");
}

/// Polls until `done`, for half a minute.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 30 s: {what}");
}

/// This test binary again, as another process that plays `role`; killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(role: &str, socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["--exact", "processes::plays_its_role", "--nocapture"])
            .env("FLEXKV_TEST_ROLE", role)
            .env("FLEXKV_TEST_SOCKET", socket)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("a child process"))
    }

    /// Kills it with SIGKILL and reaps it.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("reap");
    }

    /// What it wrote by its end.
    pub(crate) fn output(mut self) -> String {
        let mut text = String::new();
        let mut stdout = self.0.stdout.take().expect("piped");
        std::io::Read::read_to_string(&mut stdout, &mut text).expect("its output");
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing left to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
