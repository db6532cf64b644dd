//! The owner's half: hands the arena's file to readers of this host that prove themselves, brings blocks of
//! slower tiers to memory for them, and tells them by the end of the connection that it is gone.
//!
//! Knows nothing of what readers read.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flexkv_block::NamespaceId;
use flexkv_handshake::{
    Answering, CONFIRM_BYTES, Credential, Failed, HELLO_BYTES, PROOF_BYTES, Refusal, Refusals,
    Terms,
};
use flexkv_ports::{BlockTier as _, Stager, SuspectSender};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::address::{Address, HostId};
use super::held::{Holding, REQUESTS_MAX};
use super::wire::{self, Said};
use super::{MAGIC, VERSION, socket};
use crate::HostTier;

/// Pause after a connection could not be accepted, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond the bound that are let in only to be told why they are refused.
const REFUSALS: usize = 8;
/// One in so many slots may be held for readers that had blocks brought there.
const HELD_OF_SLOTS: u32 = 4;

/// How an owner shares its arena.
#[derive(Clone, Debug)]
pub struct ShareConfig {
    /// What it proves itself with.
    pub credential: Credential,
    /// Users besides its own whose processes may read.
    pub allowed_uids: Vec<u32>,
    /// Readers at a time; further ones are refused.
    pub max_readers: usize,
    /// The longest that a greeting may take.
    pub greeting_time: Duration,
    /// Counts refusals.
    pub refusals: Refusals,
    /// Where readers' reports of damaged blocks go, if anyone looks at them.
    pub suspects: Option<SuspectSender>,
}

impl ShareConfig {
    /// The defaults, with this credential.
    pub fn new(credential: Credential) -> Self {
        Self {
            credential,
            allowed_uids: Vec::new(),
            max_readers: 64,
            greeting_time: Duration::from_secs(5),
            refusals: Refusals::default(),
            suspects: None,
        }
    }
}

/// An arena that is shared until this is dropped. Readers then unmap it.
#[derive(Debug)]
pub struct ShareServer {
    endpoint: String,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    file: OwnedFd,
    terms: Terms,
    own_uid: u32,
    config: ShareConfig,
    readers: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    /// Brings blocks of other tiers to memory.
    stager: OnceLock<Arc<dyn Stager>>,
    /// Blocks that may be held for readers, and places for them.
    most_held: usize,
    room: Arc<Semaphore>,
}

impl ShareServer {
    /// Shares the arena of `tier` with the processes of this host. Runs on the current runtime.
    pub fn start(tier: &HostTier, config: ShareConfig) -> io::Result<Self> {
        let layout = *tier.layout();
        let file = tier.read_only_file().map_err(io::Error::other)?;
        let address = Address {
            host: HostId::read()?,
            arena: layout.arena(),
        };
        let listener = UnixListener::bind(address.socket())?;
        let most_held = (tier.shape().slots / HELD_OF_SLOTS).max(1) as usize;
        let shared = Arc::new(Shared {
            file,
            terms: terms(layout.namespace(), layout.block_bytes()),
            own_uid: rustix::process::geteuid().as_raw(),
            readers: Arc::new(Semaphore::new(config.max_readers)),
            refused: Arc::new(Semaphore::new(REFUSALS)),
            stager: OnceLock::new(),
            most_held,
            room: Arc::new(Semaphore::new(most_held)),
            config,
        });
        let accepting = tokio::spawn(accept_all(shared.clone(), listener));
        Ok(Self {
            endpoint: address.to_string(),
            shared,
            accepting: accepting.abort_handle(),
        })
    }

    /// Serves blocks of other tiers, too: `stager` brings them to memory. The first one stays.
    pub fn stage_with(&self, stager: Arc<dyn Stager>) {
        self.shared.stager.get_or_init(|| stager);
    }

    /// Where readers find it, such as `shm://BOOT-ID/0123456789abcdef`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Readers that are connected now.
    pub fn readers(&self) -> usize {
        self.shared.config.max_readers - self.shared.readers.available_permits()
    }
}

impl Drop for ShareServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What both sides must agree on.
pub(super) fn terms(namespace: NamespaceId, block_bytes: usize) -> Terms {
    Terms {
        magic: MAGIC,
        version: VERSION,
        block_bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
        namespace,
    }
}

/// Accepts for as long as the task is not aborted, which ends all connections too.
async fn accept_all(shared: Arc<Shared>, listener: UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let admitted = shared.readers.clone().try_acquire_owned().ok();
                let refused = shared.refused.clone().try_acquire_owned().ok();
                // Beyond both bounds the connection is just closed.
                let permit = admitted.is_some() || refused.is_some();
                if permit {
                    let refused = refused.filter(|_| admitted.is_none());
                    connections.spawn(serve(shared.clone(), stream, admitted, refused));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a reader of the arena");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    stream: UnixStream,
    admitted: Option<OwnedSemaphorePermit>,
    _refused: Option<OwnedSemaphorePermit>,
) {
    let greeting = greet(&shared, &stream, admitted.is_some());
    match timeout(shared.config.greeting_time, greeting).await {
        Ok(Ok(reader)) => {
            tracing::debug!(reader, "reads the arena");
            hear(&shared, &stream).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a reader of the arena was turned away"),
        Err(_) => tracing::debug!("a reader of the arena did not finish its greeting"),
    }
}

/// Does what the reader asks for, until it leaves or says something else.
async fn hear(shared: &Shared, stream: &UnixStream) {
    // An answer is never waited for: a reader has no more requests than the queue has places.
    let (answers, mut to_send) = mpsc::channel(REQUESTS_MAX);
    let (stager, room) = (shared.stager.get().cloned(), shared.room.clone());
    let mut holding = Holding::new(stager, room, shared.most_held, answers);
    tokio::select! {
        _ = socket::send_all(stream, &mut to_send) => {}
        heard = hear_all(shared, stream, &mut holding) => {
            tracing::debug!(?heard, "a reader of the arena has left");
        }
    }
}

async fn hear_all(shared: &Shared, stream: &UnixStream, holding: &mut Holding) -> io::Result<()> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    loop {
        let (bytes, _) = socket::receive::<{ wire::SAID_BYTES }>(stream).await?;
        match Said::decode(&bytes).ok_or_else(wrong)? {
            Said::Report(suspect) => {
                if let Some(suspects) = &shared.config.suspects {
                    suspects.tell(suspect);
                }
            }
            Said::Ask {
                id,
                count,
                patience_ms,
            } => {
                let mut blocks = vec![0; wire::NAMED_BYTES * count];
                socket::fill(stream, &mut blocks).await?;
                let blocks = wire::named(&blocks).ok_or_else(wrong)?;
                if !holding.ask(id, blocks, patience_ms) {
                    return Err(wrong());
                }
            }
            Said::End { id } => holding.end(id),
        }
    }
}

/// Greets, and sends the file; gives the reader's name.
async fn greet(shared: &Shared, stream: &UnixStream, admitted: bool) -> io::Result<String> {
    let (hello, _) = socket::receive::<HELLO_BYTES>(stream).await?;
    if let Err(failed) = Answering::hear(&shared.terms, &hello) {
        return Err(shared.turn_away(stream, failed).await);
    }
    let (proof, _) = socket::receive::<PROOF_BYTES>(stream).await?;
    let credential = &shared.config.credential;
    let (answering, reply) = match Answering::reply(credential, shared.terms, &hello, &proof) {
        Ok(answered) => answered,
        Err(failed) => return Err(shared.turn_away(stream, failed).await),
    };
    socket::send(stream, &reply, None).await?;
    let (confirm, _) = socket::receive::<CONFIRM_BYTES>(stream).await?;
    let proven = match answering.confirmed(&confirm) {
        Ok(proven) => proven,
        Err(failed) => return Err(shared.turn_away(stream, failed).await),
    };
    let reader = proven.reader().to_owned();
    let unfit = match proven.misfit() {
        Some(misfit) => Some(misfit),
        None => shared.judge(stream, admitted)?,
    };
    if let Some((refusal, message)) = unfit {
        let bytes = proven.verdict(Some((refusal, &message))).to_vec();
        let refusal = Some(refusal);
        let failed = Failed {
            refusal,
            message,
            bytes,
        };
        return Err(shared.turn_away(stream, failed).await);
    }
    let verdict = proven.verdict(None);
    socket::send(stream, &verdict, Some(shared.file.as_fd())).await?;
    Ok(reader)
}

impl Shared {
    /// Why the reader at the other end may not read, if that is so.
    fn judge(&self, stream: &UnixStream, admitted: bool) -> io::Result<Option<(Refusal, String)>> {
        let uid = stream.peer_cred()?.uid();
        if let Some(text) = stranger(uid, self.own_uid, &self.config.allowed_uids) {
            return Ok(Some((Refusal::User, text)));
        }
        if !admitted {
            let most = self.config.max_readers;
            let text = format!("all {most} places for readers are taken");
            return Ok(Some((Refusal::TooManyConnections, text)));
        }
        Ok(None)
    }

    /// Counts the refusal and tells the reader; gives an error to end the connection with.
    async fn turn_away(&self, stream: &UnixStream, failed: Failed) -> io::Error {
        if let Some(refusal) = failed.refusal {
            self.config.refusals.count(refusal);
        }
        match socket::send(stream, &failed.bytes, None).await {
            Ok(()) => io::Error::new(io::ErrorKind::PermissionDenied, failed.message),
            Err(error) => error,
        }
    }
}

/// Why user `uid` may not read, if that is so. Root is no exception.
fn stranger(uid: u32, own: u32, allowed: &[u32]) -> Option<String> {
    let known = uid == own || allowed.contains(&uid);
    (!known).then(|| format!("user {uid} may not read the arena of user {own}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_those_on_the_list_may_read() {
        assert_eq!(stranger(7, 7, &[]), None);
        assert_eq!(stranger(8, 7, &[9, 8]), None);
        for uid in [0, 8] {
            let text = stranger(uid, 7, &[9]).expect("refused");
            assert_eq!(text, format!("user {uid} may not read the arena of user 7"));
        }
    }
}
