//! The node's half: serves a [`KvCache`] to the engine processes of this host.
//!
//! Knows the socket, the sessions and the tickets they hold; what a ticket stands for is known to
//! the cache alone.

mod endpoint;
mod session;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flexkv_ports::{KvCache, Memory};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use self::endpoint::Endpoint;
use crate::mapping;
use crate::wire::{MAX_ITEMS, RefusalCode, Refused, VERSION, Welcome};

/// Wait after a failed accept (such as too many open files), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of the service and who may use it.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// User ids that may attach besides the node's own. With any, the socket is open to all users
    /// who can reach it and its folder may be searchable by them; the list decides.
    pub allowed_uids: Vec<u32>,
    /// Most engines attached at a time.
    pub max_sessions: usize,
    /// Most keys in one request, up to [`MAX_ITEMS`].
    pub max_keys: usize,
    /// Most tickets a session holds at a time.
    pub max_tickets: usize,
    /// Most loads a session waits for at a time.
    pub max_waits: usize,
    /// An engine that does not greet within this time is turned away.
    pub greeting_within: Duration,
    /// An engine that does not take an answer within this time loses its session.
    pub answer_within: Duration,
    /// A session that does not end within this time of the node's shutdown is cut off.
    pub shutdown_within: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            allowed_uids: Vec::new(),
            max_sessions: 256,
            max_keys: MAX_ITEMS,
            max_tickets: 65_536,
            max_waits: 1024,
            greeting_within: Duration::from_secs(5),
            answer_within: Duration::from_secs(10),
            shutdown_within: Duration::from_secs(5),
        }
    }
}

/// Why the service cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The arena cannot be handed to other processes.
    #[error("{reason}")]
    Arena {
        /// Why not.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("engine service: `{setting}` is {value}, must be in 1..={most}")]
    Config {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: usize,
        /// The largest value.
        most: usize,
    },
    /// The socket's folder could be entered by others, so that they could replace the socket.
    #[error(
        "folder {} has mode {mode:03o}; engines attach there, so it must be mode 700", .path.display()
    )]
    FolderMode {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The socket's folder belongs to another user.
    #[error("folder {} belongs to uid {owner}, not to this node's uid {own}", .path.display())]
    FolderOwner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        own: u32,
    },
    /// Something else than a folder or a socket lies there.
    #[error("{} exists and is not a {expected}", .path.display())]
    NotA {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A node serves there already.
    #[error("another node listens on {}", .path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused a step.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What all sessions share.
struct Service {
    cache: Arc<dyn KvCache>,
    arena: Arc<dyn Memory>,
    arena_file: OwnedFd,
    welcome: Welcome,
    own_uid: u32,
    config: ServerConfig,
    closing: watch::Receiver<bool>,
}

/// The running service. Dropping it ends it as [`Self::shutdown`] does, but nobody waits.
pub struct EngineServer {
    path: PathBuf,
    closing: watch::Sender<bool>,
    sessions: Arc<Semaphore>,
    config: ServerConfig,
    accepting: JoinHandle<()>,
}

impl EngineServer {
    /// Serves `cache` on a Unix socket at `path`, whose folder is made if need be. All blocks that
    /// the cache hands out must lie in `arena`, which must be a memory file sealed against
    /// shrinking. Must be called inside a tokio runtime, which then runs the service.
    pub fn start(
        path: impl Into<PathBuf>,
        cache: Arc<dyn KvCache>,
        arena: Arc<dyn Memory>,
        config: ServerConfig,
    ) -> Result<Self, StartError> {
        let path = path.into();
        check_config(&config)?;
        let arena_file = arena_file(&*arena)?;
        let (endpoint, listener) = Endpoint::open(&path, !config.allowed_uids.is_empty())?;
        let (closing, closing_seen) = watch::channel(false);
        let sessions = Arc::new(Semaphore::new(config.max_sessions));
        let welcome = Welcome {
            version: VERSION,
            pid: std::process::id(),
            namespace: cache.namespace(),
            block_bytes: cache.block_bytes() as u64,
            arena_bytes: arena.len() as u64,
            max_keys: config.max_keys as u32,
        };
        let service = Arc::new(Service {
            cache,
            arena,
            arena_file,
            welcome,
            own_uid: rustix::process::geteuid().as_raw(),
            config: config.clone(),
            closing: closing_seen,
        });
        let accepting = tokio::spawn(accept(service, endpoint, listener, sessions.clone()));
        tracing::info!(socket = %path.display(), "engines may attach");
        Ok(Self {
            path,
            closing,
            sessions,
            config,
            accepting,
        })
    }

    /// Where engines attach.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many engines are attached now.
    pub fn sessions(&self) -> usize {
        self.count_sessions()()
    }

    /// As [`Self::sessions`], to be called by others.
    pub fn count_sessions(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let (most, free) = (self.config.max_sessions, self.sessions.clone());
        move || most - free.available_permits()
    }

    /// Takes no more engines, removes the socket, ends all sessions and releases their tickets.
    /// Returns when that is done, or after twice [`ServerConfig::shutdown_within`].
    pub async fn shutdown(mut self) {
        self.closing.send_replace(true);
        if (&mut self.accepting).await.is_err() {
            tracing::error!("the engine service panicked while accepting");
        }
        let all = u32::try_from(self.config.max_sessions).unwrap_or(u32::MAX);
        let ended = self.sessions.acquire_many(all);
        let within = 2 * self.config.shutdown_within;
        if tokio::time::timeout(within, ended).await.is_err() {
            tracing::warn!("sessions of engines are still ending after {within:?}");
        }
    }
}

impl Drop for EngineServer {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

impl std::fmt::Debug for EngineServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EngineServer({})", self.path.display())
    }
}

fn check_config(config: &ServerConfig) -> Result<(), StartError> {
    for (setting, value, most) in [
        ("max_sessions", config.max_sessions, 65_536),
        ("max_keys", config.max_keys, MAX_ITEMS),
        ("max_tickets", config.max_tickets, 1 << 24),
        ("max_waits", config.max_waits, 1 << 16),
    ] {
        if !(1..=most).contains(&value) {
            return Err(StartError::Config {
                setting,
                value,
                most,
            });
        }
    }
    Ok(())
}

/// The arena's file, for handing out.
fn arena_file(arena: &dyn Memory) -> Result<OwnedFd, StartError> {
    let reason = match arena.fd() {
        None => "the arena is not a memory file, so engines cannot share it".to_owned(),
        Some(file) => match mapping::check(file, arena.len() as u64) {
            Err(reason) => reason,
            Ok(()) => match file.as_fd().try_clone_to_owned() {
                Ok(file) => return Ok(file),
                Err(error) => format!("the arena's file cannot be duplicated: {error}"),
            },
        },
    };
    Err(StartError::Arena { reason })
}

/// Accepts engines until the node shuts down; the socket goes with `endpoint`.
async fn accept(
    service: Arc<Service>,
    endpoint: Endpoint,
    listener: UnixListener,
    sessions: Arc<Semaphore>,
) {
    let mut closing = service.closing.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match accepted {
            Ok((stream, _)) => admit(&service, stream, &sessions),
            Err(error) => {
                tracing::warn!(%error, "an engine could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(endpoint);
}

/// Starts a session, or says why there is none.
fn admit(service: &Arc<Service>, stream: UnixStream, sessions: &Arc<Semaphore>) {
    match check_peer(service, &stream).and_then(|()| place(sessions, &service.config)) {
        Ok(permit) => {
            tokio::spawn(session::run(service.clone(), stream, permit));
        }
        Err(refused) => {
            tracing::warn!(reason = refused.text, "an engine was refused");
            let mut frame = Vec::new();
            refused.encode(&mut frame);
            // A fresh socket takes a short frame at once; if not, the engine sees the close.
            if let Err(error) = rustix::net::send(&stream, &frame, session::NO_WAIT) {
                tracing::debug!(%error, "the refused engine is gone already");
            }
        }
    }
}

fn place(
    sessions: &Arc<Semaphore>,
    config: &ServerConfig,
) -> Result<OwnedSemaphorePermit, Refused> {
    sessions.clone().try_acquire_owned().map_err(|_| Refused {
        code: RefusalCode::Busy,
        text: format!("all {} sessions of the node are taken", config.max_sessions),
    })
}

fn check_peer(service: &Service, stream: &UnixStream) -> Result<(), Refused> {
    let refused = |text| Refused {
        code: RefusalCode::User,
        text,
    };
    let peer = stream
        .peer_cred()
        .map_err(|error| refused(format!("the engine's user is unknown: {error}")))?;
    if may_attach(service.own_uid, &service.config.allowed_uids, peer.uid()) {
        return Ok(());
    }
    Err(refused(format!(
        "uid {} may not attach to this node, which runs as uid {}",
        peer.uid(),
        service.own_uid
    )))
}

/// Only the node's own user and those listed; root is no exception.
fn may_attach(own: u32, allowed: &[u32], peer: u32) -> bool {
    peer == own || allowed.contains(&peer)
}

#[cfg(test)]
mod tests;
