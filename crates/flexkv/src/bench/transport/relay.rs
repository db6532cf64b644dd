//! A way to an owner that lets so many bytes a second through, over all its connections together.
//!
//! What goes to the owner is not held up. Knows nothing of what it carries.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes that are let through at a time.
const STEP: usize = 16 << 10;
/// Time that was not used counts as long as this, as timers are late.
const CREDIT: Duration = Duration::from_millis(5);

/// A listening relay. Dropping it closes its connections.
pub(super) struct Relay {
    address: SocketAddr,
    pace: Arc<Pace>,
    task: AbortHandle,
}

impl Relay {
    /// A relay to `owner` at some free port of this host.
    pub(super) async fn start(owner: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let pace = Arc::new(Pace::new());
        Ok(Self {
            address: listener.local_addr()?,
            task: tokio::spawn(serve(listener, owner, pace.clone())).abort_handle(),
            pace,
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets so many bytes a second through from now on.
    pub(super) fn set_rate(&self, bytes_per_second: f64) {
        self.pace.lock().rate = bytes_per_second;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, owner: SocketAddr, pace: Arc<Pace>) {
    // Ends with this task.
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((reader, _)) = accepted {
                carried.spawn(carry(reader, owner, pace.clone()));
            },
            // One that failed or ended: both sides know.
            Some(_) = carried.join_next() => {}
        }
    }
}

/// Carries bytes both ways until one side ends.
async fn carry(reader: TcpStream, owner: SocketAddr, pace: Arc<Pace>) -> io::Result<()> {
    let owner = TcpStream::connect(owner).await?;
    reader.set_nodelay(true)?;
    owner.set_nodelay(true)?;
    let (mut from_reader, to_reader) = reader.into_split();
    let (from_owner, mut to_owner) = owner.into_split();
    tokio::select! {
        asked = copy(&mut from_reader, &mut to_owner) => asked.map(drop),
        answered = throttled(from_owner, to_reader, &pace) => answered,
    }
}

async fn throttled(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pace: &Pace) -> io::Result<()> {
    let mut step = vec![0; STEP];
    loop {
        let bytes = from.read(&mut step).await?;
        if bytes == 0 {
            return Ok(());
        }
        pace.pass(bytes).await;
        to.write_all(&step[..bytes]).await?;
    }
}

/// When the next bytes may pass.
struct Pace(Mutex<State>);

struct State {
    /// Bytes a second.
    rate: f64,
    free_at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self(Mutex::new(State {
            rate: f64::INFINITY,
            free_at: Instant::now(),
        }))
    }

    /// Waits until `bytes` more have had the time that they take.
    async fn pass(&self, bytes: usize) {
        let until = {
            let mut state = self.lock();
            let now = Instant::now();
            let from = state.free_at.max(now.checked_sub(CREDIT).unwrap_or(now));
            state.free_at = from + Duration::from_secs_f64(bytes as f64 / state.rate);
            state.free_at
        };
        sleep_until(until).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
