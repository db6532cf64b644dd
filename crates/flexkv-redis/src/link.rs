//! One connection to the server, opened again for ever.
//!
//! A task keeps the connection; callers see whether it is up. The client library's own
//! reconnecting is switched off: it queues commands and hides why a server refuses us. Knows
//! nothing of what is sent over the connection.

use std::future::Future;
use std::time::Duration;

use flexkv_ports::StoreError;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::ConnectHandle;
use fred::types::config::{Config, ConnectionConfig, TcpConfig};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use crate::error::{Failed, costs_the_connection, sort, unavailable};

/// The first wait after an attempt that failed; doubles up to [`MAX_DELAY`].
const MIN_DELAY: Duration = Duration::from_millis(20);
/// The longest wait between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// A connection that lasted this long was a good one: the next is opened without waiting.
const STABLE: Duration = Duration::from_secs(1);

/// Where a connection leads, and how long we wait for it.
#[derive(Clone)]
pub(crate) struct Target {
    /// The server, or the sentinels that know it, and who we are to it.
    pub(crate) config: Config,
    /// What it is called in errors.
    pub(crate) address: String,
    /// Longest wait for a connection and for a command.
    pub(crate) timeout: Duration,
}

/// A connection and the task that keeps it. Dropping it closes the connection and ends the task.
pub(crate) struct Link {
    target: Target,
    state: watch::Receiver<State>,
    suspect: watch::Sender<u64>,
    keeper: JoinHandle<()>,
}

#[derive(Clone)]
enum State {
    /// No attempt has failed yet, or a good connection was just lost: worth waiting for.
    Connecting,
    /// Connected. The number counts connections.
    Up(Client, u64),
    /// The last attempt failed.
    Down(StoreError),
}

/// What to do with the connection if a call is dropped before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfDropped {
    /// Leave it: the command ends soon, and others share the connection.
    Keep,
    /// Close it: the command would block those after it.
    Close,
}

impl Link {
    /// Begins to connect.
    pub(crate) fn open(target: Target) -> Self {
        let (state_sender, state) = watch::channel(State::Connecting);
        let (suspect, suspected) = watch::channel(0);
        let keeper = Keeper {
            target: target.clone(),
            state: state_sender,
            suspected,
        };
        Self {
            target,
            state,
            suspect,
            keeper: tokio::spawn(keeper.run()),
        }
    }

    /// Waits until the connection is up or an attempt has failed.
    pub(crate) async fn first_outcome(&self) -> Result<(), StoreError> {
        self.client().await.map(drop)
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> &str {
        &self.target.address
    }

    /// A number that changes whenever a connection was given up because of a call.
    pub(crate) fn given_up(&self) -> u64 {
        *self.suspect.borrow()
    }

    /// Does a command that the server answers at once; see [`Self::call`].
    pub(crate) async fn quick<T, F>(
        &self,
        command: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let limit = self.target.timeout;
        self.call(limit, IfDropped::Keep, command).await
    }

    /// Does `command` on the connection within `limit`. Fails at once while the server is known to
    /// be out of reach. A command that takes too long costs the connection.
    pub(crate) async fn call<T, F>(
        &self,
        limit: Duration,
        if_dropped: IfDropped,
        command: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let deadline = Instant::now() + limit;
        let Ok(client) = timeout_at(deadline, self.client()).await else {
            return Err(self.late("no connection", limit));
        };
        let (client, number) = client?;
        let mut suspicion = Suspicion {
            link: self,
            number,
            armed: if_dropped == IfDropped::Close,
        };
        let answer = timeout_at(deadline, command(client)).await;
        suspicion.armed = match &answer {
            Err(_) => true,
            Ok(Err(error)) => costs_the_connection(error),
            Ok(Ok(_)) => false,
        };
        match answer {
            Err(_) => Err(self.late("no answer", limit)),
            Ok(answer) => answer.map_err(|error| Failed::sort(self.address(), &error)),
        }
    }

    fn late(&self, what: &str, limit: Duration) -> Failed {
        unavailable(self.address(), &format!("{what} within {limit:?}")).into()
    }

    /// The client and its number, as soon as it is known whether there is one.
    async fn client(&self) -> Result<(Client, u64), StoreError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| match state {
            State::Connecting => false,
            // Given up by a call, and the keeper has not noticed yet.
            State::Up(_, number) => *number > *self.suspect.borrow(),
            State::Down(_) => true,
        });
        match known.await.map(|state| state.clone()) {
            Ok(State::Up(client, number)) => Ok((client, number)),
            Ok(State::Down(error)) => Err(error),
            Ok(State::Connecting) | Err(_) => Err(unavailable(self.address(), "shut down")),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Has the connection closed when dropped while armed.
struct Suspicion<'a> {
    link: &'a Link,
    number: u64,
    armed: bool,
}

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if self.armed {
            let number = self.number;
            self.link
                .suspect
                .send_modify(|last| *last = number.max(*last));
        }
    }
}

/// The task's side of a [`Link`].
struct Keeper {
    target: Target,
    state: watch::Sender<State>,
    suspected: watch::Receiver<u64>,
}

/// How a connection ended.
struct Ended {
    why: StoreError,
    /// It was a good one, or we gave it up: the next attempt needs no waiting.
    again_at_once: bool,
}

impl Keeper {
    async fn run(mut self) {
        let mut rng = fastrand::Rng::new();
        let mut delay = MIN_DELAY;
        for number in 1.. {
            let ended = self.connect_once(number).await;
            if ended.again_at_once {
                delay = MIN_DELAY;
                self.state.send_replace(State::Connecting);
                continue;
            }
            self.give_up_for_now(ended.why);
            sleep(delay.mul_f64(0.5 + rng.f64() / 2.0)).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    /// Tells callers why they cannot be served; logs it unless it is the same reason as before.
    fn give_up_for_now(&self, why: StoreError) {
        let again = matches!(&*self.state.borrow(), State::Down(last) if *last == why);
        if !again {
            warn!("{why}; trying on");
        }
        self.state.send_replace(State::Down(why));
    }

    /// Connects and stays until the connection is lost or is suspected to be.
    async fn connect_once(&mut self, number: u64) -> Ended {
        let address = self.target.address.clone();
        let client = self.client();
        let mut connected = client.reconnect_rx();
        let mut driver = Driver(client.connect());
        let never = |why| Ended {
            why,
            again_at_once: false,
        };
        tokio::select! {
            why = driver.ended(&address) => return never(why),
            up = connected.recv() => if up.is_err() {
                return never(unavailable(&address, "the client ended"));
            },
        }
        let since = Instant::now();
        let before = self.state.send_replace(State::Up(client, number));
        if number == 1 || matches!(before, State::Down(_)) {
            info!("connected to redis at {address}");
        }
        let ended = tokio::select! {
            why = driver.ended(&address) => Ended {
                why,
                again_at_once: since.elapsed() >= STABLE,
            },
            _ = self.suspected.wait_for(|suspect| *suspect >= number) => Ended {
                why: unavailable(&address, "connection given up after a command without an answer"),
                again_at_once: true,
            },
        };
        debug!("connection {number} is lost: {}", ended.why);
        ended
    }

    /// A client for one connection, which it does not open again.
    fn client(&self) -> Client {
        let config = Config {
            fail_fast: true,
            ..self.target.config.clone()
        };
        let connection = ConnectionConfig {
            connection_timeout: self.target.timeout,
            internal_command_timeout: self.target.timeout,
            max_command_attempts: 1,
            tcp: TcpConfig {
                nodelay: Some(true),
                ..TcpConfig::default()
            },
            ..ConnectionConfig::default()
        };
        Client::new(config, None, Some(connection), None)
    }
}

/// The client library's task, which owns the socket. Ends with its handle.
struct Driver(ConnectHandle);

impl Driver {
    async fn ended(&mut self, address: &str) -> StoreError {
        match (&mut self.0).await {
            Ok(Err(error)) => sort(address, &error),
            Ok(Ok(())) => unavailable(address, "connection closed"),
            Err(panic) => unavailable(address, &panic.to_string()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
