//! What the client makes of nodes that are too new, silent, or lie about their arena.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use flexkv_ports::Ticket;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::stream::{Frames, send_with_file};
use crate::wire::{Hello, MAX_BODY_BYTES, VERSION, Welcome};

const ARENA: u64 = 8192;

fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        pid: 1,
        namespace: NamespaceId::from_u128(1),
        block_bytes: 4096,
        arena_bytes: ARENA,
        max_keys: 100,
    }
}

fn memfd(sealed: bool) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("flexkv-test", flags).expect("memfd");
    ftruncate(&file, ARENA).expect("truncate");
    if sealed {
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("seal");
    }
    file
}

/// A node that says what the test wants.
struct FakeNode {
    listener: UnixListener,
    path: PathBuf,
    _folder: TempDir,
}

impl FakeNode {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("node.sock");
        Self {
            listener: UnixListener::bind(&path).expect("bind"),
            path,
            _folder: folder,
        }
    }

    /// Answers one greeting.
    async fn greet(&self, welcome: Welcome, file: Option<OwnedFd>) -> FakeSession {
        let (stream, _) = self.listener.accept().await.expect("accept");
        let mut frames = Frames::new(MAX_BODY_BYTES);
        let hello = frames.next_with_files(&stream, &mut Vec::new()).await;
        let (header, body) = hello.expect("good").expect("there");
        let hello = Hello::decode(header.kind, body).expect("Hello");
        assert_eq!((hello.version, hello.pid), (VERSION, std::process::id()));
        let mut frame = Vec::new();
        welcome.encode(&mut frame);
        match file {
            Some(file) => send_with_file(&stream, &frame, file.as_fd())
                .await
                .expect("sent"),
            None => assert_eq!(stream.try_write(&frame).expect("sent"), frame.len()),
        }
        FakeSession { stream, frames }
    }

    async fn attach(
        &self,
        welcome: Welcome,
        file: Option<OwnedFd>,
    ) -> (Result<EngineClient, CacheError>, FakeSession) {
        tokio::join!(EngineClient::attach(&self.path), self.greet(welcome, file))
    }
}

struct FakeSession {
    stream: UnixStream,
    frames: Frames,
}

impl FakeSession {
    /// Answers the next request with `reply`.
    async fn answer(&mut self, reply: &[u8]) {
        let request = self
            .frames
            .next_with_files(&self.stream, &mut Vec::new())
            .await;
        let (header, _) = request.expect("good").expect("there");
        let mut frame = reply.to_vec();
        frame[8..12].copy_from_slice(&header.id.to_le_bytes());
        assert_eq!(self.stream.try_write(&frame).expect("sent"), frame.len());
    }
}

fn encoded(reply: &Reply) -> Vec<u8> {
    let mut frame = Vec::new();
    reply.encode(0, &mut frame);
    frame
}

#[tokio::test]
async fn unfit_nodes_are_refused_by_name() {
    let newer = Welcome {
        version: VERSION + 1,
        ..welcome()
    };
    let longer = Welcome {
        arena_bytes: 2 * ARENA,
        ..welcome()
    };
    let no_block = Welcome {
        block_bytes: 0,
        ..welcome()
    };
    let huge_block = Welcome {
        block_bytes: ARENA + 1,
        ..welcome()
    };
    for (welcome, file, reason) in [
        (newer, Some(memfd(true)), "it speaks version 3"),
        (longer, Some(memfd(true)), "8192 bytes instead of 16384"),
        (no_block, Some(memfd(true)), "blocks of 0 bytes"),
        (huge_block, Some(memfd(true)), "blocks of 8193 bytes"),
        (
            welcome(),
            Some(memfd(false)),
            "not sealed against shrinking",
        ),
        (welcome(), None, "did not hand over the arena's file"),
    ] {
        let node = FakeNode::new();
        let (attached, _session) = node.attach(welcome, file).await;
        let error = attached.expect_err(reason);
        assert!(matches!(error, CacheError::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn answers_outside_of_the_arena_end_the_session() {
    let block = |offset| PlacedBlock {
        key: BlockKey::from_u128(1),
        checksum: flexkv_block::Checksum(1),
        offset,
    };
    for offset in [ARENA - 4095, ARENA, u64::MAX, u64::MAX - 4095] {
        let node = FakeNode::new();
        let (attached, mut session) = node.attach(welcome(), Some(memfd(true))).await;
        let client = attached.expect("attach");
        let lie = encoded(&Reply::Loaded {
            local: 2,
            remote: 0,
            blocks: vec![block(0), block(offset)],
        });
        let (loaded, ()) = tokio::join!(client.wait(Ticket(1)), session.answer(&lie));
        let error = loaded.expect_err("a lie");
        assert!(matches!(error, CacheError::Gone { .. }), "{error:?}");
        assert!(error.to_string().contains(&offset.to_string()), "{error}");
        assert!(!client.is_attached());
    }
}

#[tokio::test]
async fn answers_that_do_not_fit_end_the_session() {
    let grant = Reply::Granted {
        ticket: Ticket(1),
        slots: vec![None; 3],
    };
    let mut malformed = encoded(&Reply::Done);
    malformed[4] = 0x77;
    for (reply, reason) in [
        (encoded(&grant), "granted 3 slots for 2 keys"),
        (encoded(&Reply::Pending), "answered Pending to Store"),
        (malformed, "malformed frame"),
    ] {
        let node = FakeNode::new();
        let (attached, mut session) = node.attach(welcome(), Some(memfd(true))).await;
        let client = attached.expect("attach");
        let keys = [1, 2, 3].map(BlockKey::from_u128);
        let (granted, ()) = tokio::join!(client.store(&keys, 1), session.answer(&reply));
        let error = granted.expect_err(reason);
        assert!(matches!(error, CacheError::Gone { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_gone() {
    let node = FakeNode::new();
    let (attached, session) = node.attach(welcome(), Some(memfd(true))).await;
    let client = attached.expect("attach");
    tokio::time::pause();
    let error = client.match_prefix(&[]).await.expect_err("no answer");
    let reason = "the node did not answer Match within 2000 ms".to_owned();
    assert_eq!(error, CacheError::Gone { reason });
    assert!(!client.is_attached());
    drop(session);
}

#[tokio::test]
async fn a_node_that_does_not_greet_is_gone() {
    let node = FakeNode::new();
    tokio::time::pause();
    let error = EngineClient::attach(&node.path).await.expect_err("silence");
    assert!(matches!(error, CacheError::Gone { .. }), "{error:?}");
    assert!(error.to_string().contains("no greeting"), "{error}");
}

#[tokio::test]
async fn no_node_is_named_by_its_path() {
    let error = EngineClient::attach("/nonexistent/node.sock").await;
    let error = error.expect_err("nobody there");
    assert!(matches!(error, CacheError::Gone { .. }), "{error:?}");
    assert!(
        error.to_string().contains("/nonexistent/node.sock"),
        "{error}"
    );
}

/// The runtime that attached is gone: callers on another one do not hang.
#[test]
fn a_session_ends_with_its_runtime() {
    let build = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let (first, second) = (build().expect("runtime"), build().expect("runtime"));
    let node = first.block_on(async { FakeNode::new() });
    let (attached, session) = first.block_on(node.attach(welcome(), Some(memfd(true))));
    let client = attached.expect("attach");
    drop((node, session));
    drop(first);
    let error = second.block_on(client.match_prefix(&[])).expect_err("over");
    assert!(matches!(error, CacheError::Gone { .. }), "{error:?}");
}
