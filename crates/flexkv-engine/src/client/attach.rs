//! The handshake as the engine does it: greeting, the arena's file, the mapping.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::CacheError;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::EngineClient;
use super::connection::Connection;
use crate::mapping::ArenaMapping;
use crate::stream::{Frames, StreamError};
use crate::wire::{Hello, MAX_BODY_BYTES, MAX_ITEMS, RefusalCode, Refused, VERSION, Welcome};

/// Most time that connecting and the greetings may take.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);

/// Connects, greets and maps.
pub(super) async fn attach(path: &Path) -> Result<EngineClient, CacheError> {
    match timeout(ATTACH_WITHIN, greet(path)).await {
        Ok(result) => result,
        Err(_) => Err(gone(
            path,
            format_args!("no greeting within {} s", ATTACH_WITHIN.as_secs()),
        )),
    }
}

async fn greet(path: &Path) -> Result<EngineClient, CacheError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| gone(path, format_args!("cannot connect: {error}")))?;
    let mut hello = Vec::new();
    Hello {
        version: VERSION,
        pid: std::process::id(),
    }
    .encode(&mut hello);
    stream.writable().await.map_err(|error| gone(path, error))?;
    // A node that refuses may have closed already; what it said can still be read.
    let greeted = stream.try_write(&hello);
    let mut frames = Frames::new(MAX_BODY_BYTES);
    let mut files = Vec::new();
    let welcome = match frames.next_with_files(&stream, &mut files).await {
        Ok(Some((header, body))) => read_welcome(path, header.kind, body)?,
        Ok(None) => {
            let reason = greeted.err().map_or_else(
                || "it closed the connection".to_owned(),
                |error| error.to_string(),
            );
            return Err(gone(path, reason));
        }
        Err(StreamError::Wire(error)) => return Err(invalid(path, error)),
        Err(error) => return Err(gone(path, error)),
    };
    open(path, stream, frames, welcome, files)
}

/// The node's greeting, or why there will be no session.
fn read_welcome(path: &Path, kind: u16, body: &[u8]) -> Result<Welcome, CacheError> {
    if kind == Refused::KIND {
        let refused = Refused::decode(body).map_err(|error| invalid(path, error))?;
        return Err(match refused.code {
            RefusalCode::Busy | RefusalCode::Closing => gone(path, refused.text),
            RefusalCode::Version | RefusalCode::User | RefusalCode::Protocol => {
                invalid(path, refused.text)
            }
        });
    }
    let welcome = Welcome::decode(kind, body).map_err(|error| invalid(path, error))?;
    if welcome.version == VERSION {
        Ok(welcome)
    } else {
        Err(invalid(
            path,
            format_args!(
                "it speaks version {} of the local protocol, this engine version {VERSION}",
                welcome.version
            ),
        ))
    }
}

fn open(
    path: &Path,
    stream: UnixStream,
    frames: Frames,
    welcome: Welcome,
    mut files: Vec<OwnedFd>,
) -> Result<EngineClient, CacheError> {
    let (Some(file), true) = (files.pop(), files.is_empty()) else {
        return Err(invalid(path, "it did not hand over the arena's file"));
    };
    let arena =
        ArenaMapping::map(file, welcome.arena_bytes).map_err(|reason| invalid(path, reason))?;
    let block_bytes = usize::try_from(welcome.block_bytes)
        .ok()
        .filter(|bytes| (1..=welcome.arena_bytes).contains(&(*bytes as u64)))
        .ok_or_else(|| {
            invalid(
                path,
                format_args!(
                    "blocks of {} bytes do not fit its arena of {} bytes",
                    welcome.block_bytes, welcome.arena_bytes
                ),
            )
        })?;
    tracing::info!(node = %path.display(), pid = welcome.pid, namespace = %welcome.namespace,
        arena_bytes = welcome.arena_bytes, "attached to the cache node");
    Ok(EngineClient {
        connection: Connection::start(stream, frames),
        arena: Arc::new(arena),
        namespace: welcome.namespace,
        block_bytes,
        max_keys: (welcome.max_keys as usize).min(MAX_ITEMS),
    })
}

fn gone(path: &Path, reason: impl std::fmt::Display) -> CacheError {
    CacheError::Gone {
        reason: format!("node at {}: {reason}", path.display()),
    }
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> CacheError {
    CacheError::Invalid {
        reason: format!("cannot attach to the node at {}: {reason}", path.display()),
    }
}
