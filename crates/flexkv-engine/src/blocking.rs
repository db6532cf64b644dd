//! A session with the node for threads without async: a small runtime of its own, and one call
//! that waits for what the async interface does.
//!
//! Knows nothing of the calls themselves: they are those of [`EngineClient`] and [`TwoStep`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flexkv_block::NamespaceId;
use flexkv_ports::{CacheError, KvCache as _};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{sleep, timeout};

use crate::{EngineClient, TwoStep};

/// Between two attempts to attach, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// A session with the node of this host, to be used from any number of threads.
///
/// Belongs to the process that attached: in a child that was forked from it every call answers
/// [`CacheError::Gone`], and dropping it there leaves the parent's session alone.
pub struct Attachment {
    /// `None` once dropped.
    session: Option<Session>,
    process: u32,
    namespace: NamespaceId,
    block_bytes: usize,
}

/// Fields are dropped in this order: the session ends before its runtime does.
struct Session {
    steps: TwoStep,
    client: Arc<EngineClient>,
    runtime: Runtime,
}

impl Attachment {
    /// Attaches to the node that listens at `path`, or will do so `within` this time.
    ///
    /// # Errors
    /// [`CacheError::Gone`] if there is no such node by then, [`CacheError::Invalid`] at once if
    /// there is one that can never fit (see [`EngineClient::attach`]).
    pub fn attach(path: impl AsRef<Path>, within: Duration) -> Result<Self, CacheError> {
        refuse_async()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("flexkv-session")
            .enable_all()
            .build();
        let runtime =
            runtime.map_err(|error| gone(format!("no thread for the session: {error}")))?;
        let client = Arc::new(runtime.block_on(attach(path.as_ref(), within))?);
        Ok(Self {
            process: std::process::id(),
            namespace: client.namespace(),
            block_bytes: client.block_bytes(),
            session: Some(Session {
                steps: TwoStep::new(client.clone()),
                client,
                runtime,
            }),
        })
    }

    /// The namespace whose blocks the node holds.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// Bytes of every block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Whether the session still stands.
    pub fn is_attached(&self) -> bool {
        self.session()
            .is_ok_and(|session| session.client.is_attached())
    }

    /// The cache, to be called inside of [`Self::block_on`].
    ///
    /// # Errors
    /// [`CacheError::Gone`] in a forked process.
    pub fn client(&self) -> Result<&Arc<EngineClient>, CacheError> {
        self.session().map(|session| &session.client)
    }

    /// The two steps, to be called inside of [`Self::block_on`].
    ///
    /// # Errors
    /// [`CacheError::Gone`] in a forked process.
    pub fn steps(&self) -> Result<&TwoStep, CacheError> {
        self.session().map(|session| &session.steps)
    }

    /// Waits for `call`. Calls of this crate end by their deadlines.
    ///
    /// # Errors
    /// Those of `call`; [`CacheError::Invalid`] inside of async code, which must not be blocked;
    /// [`CacheError::Gone`] in a forked process.
    pub fn block_on<T>(
        &self,
        call: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        refuse_async()?;
        self.session()?.runtime.block_on(call)
    }

    /// Runs `task` beside the session, for no longer than it.
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), CacheError> {
        self.session()?.runtime.spawn(task);
        Ok(())
    }

    /// The session, in the process that has it: another has none of its threads, and perhaps locks
    /// that nobody opens any more.
    fn session(&self) -> Result<&Session, CacheError> {
        let own = std::process::id() == self.process;
        let session = self.session.as_ref().filter(|_| own);
        session.ok_or_else(|| gone("this process was forked from the one that attached".to_owned()))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let own = std::process::id() == self.process;
        match self.session.take() {
            Some(session) if own => {
                drop((session.steps, session.client));
                session.runtime.shutdown_background();
            }
            // The socket, the threads and the locks are the parent's.
            forked => std::mem::forget(forked),
        }
    }
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment")
            .field("namespace", &self.namespace)
            .field("attached", &self.is_attached())
            .finish_non_exhaustive()
    }
}

/// Tries to attach until the time is over; the last reason is the one to tell.
async fn attach(path: &Path, within: Duration) -> Result<EngineClient, CacheError> {
    let mut last = gone(format!("no node greeted at {} in time", path.display()));
    let trying = timeout(within, async {
        let mut pause = RETRY.0;
        loop {
            match EngineClient::attach(path).await {
                Err(error @ CacheError::Gone { .. }) => last = error,
                done => return done,
            }
            sleep(pause).await;
            pause = (2 * pause).min(RETRY.1);
        }
    });
    let tried = trying.await;
    tried.unwrap_or(Err(last))
}

fn refuse_async() -> Result<(), CacheError> {
    if Handle::try_current().is_err() {
        return Ok(());
    }
    let reason = "a call that blocks was made inside of async code".to_owned();
    Err(CacheError::Invalid { reason })
}

fn gone(reason: String) -> CacheError {
    CacheError::Gone { reason }
}
