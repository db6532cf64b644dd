//! The reader's half: fetches blocks from arenas of this host, named by `shm://host/arena` endpoints.
//!
//! A few small blocks are copied by the caller's own thread; larger batches by several at once. Knows
//! nothing of how an arena got here.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_block::{NamespaceId, Tier};
use flexkv_handshake::Credential;
use flexkv_ports::{BoxFuture, FetchOutcome, Fetched, Remembered, Suspect, Transport, Want};
use futures_util::future::{join, join_all};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::address::{Address, HostId, SCHEME};
use super::asks::Held;
use super::link::Link;
use super::wire;
use crate::MappedArena;

/// Bytes that the caller's thread copies itself: less than starting another thread would take.
const INLINE_BYTES: usize = 256 << 10;
/// The least bytes for which another thread is worth its start.
const SHARE_BYTES: usize = 512 << 10;

/// How a reader fetches.
#[derive(Clone, Debug)]
pub struct HostTransportConfig {
    /// The namespace whose blocks are fetched.
    pub namespace: NamespaceId,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// What it proves itself with.
    pub credential: Credential,
    /// Threads that copy one batch.
    pub copiers: usize,
    /// Arenas remembered; the one unused for longest makes room.
    pub max_owners: usize,
    /// The longest that attaching may take.
    pub open_time: Duration,
    /// How long an owner is left alone after its first failure.
    pub first_pause: Duration,
    /// How long it is left alone at most.
    pub longest_pause: Duration,
}

impl HostTransportConfig {
    /// The defaults for blocks of `block_bytes` bytes of `namespace`.
    pub fn new(namespace: NamespaceId, block_bytes: usize, credential: Credential) -> Self {
        Self {
            namespace,
            block_bytes,
            credential,
            copiers: 2,
            max_owners: 64,
            open_time: Duration::from_secs(1),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
        }
    }
}

/// The reader's half of the transport. Dropping it unmaps all arenas.
pub struct HostTransport {
    host: HostId,
    config: HostTransportConfig,
    links: Mutex<Remembered<u64, Arc<Link>>>,
}

impl HostTransport {
    /// A transport that has nothing mapped. Fails if the kernel does not tell which host this is.
    pub fn new(config: HostTransportConfig) -> io::Result<Self> {
        Ok(Self {
            host: HostId::read()?,
            links: Mutex::new(Remembered::new(config.max_owners)),
            config,
        })
    }

    /// Arenas mapped now.
    pub fn mapped(&self) -> usize {
        let links = self.lock();
        links.values().filter(|link| is_mapped(link)).count()
    }

    /// Why the owner at `endpoint` could not be attached to at the last attempt; `None` if it was.
    pub fn last_refusal(&self, endpoint: &str) -> Option<String> {
        let address = Address::parse(endpoint)?;
        let link = self.lock().get(address.arena)?.clone();
        link.reason()
    }

    /// The link to the owner at `endpoint`; none if that is no endpoint of this host.
    fn link(&self, endpoint: &str) -> Option<Arc<Link>> {
        let address = Address::parse(endpoint).filter(|address| address.host == self.host)?;
        let make = || Link::new(address.clone(), self.config.clone());
        let mut links = self.lock();
        Some(links.find_or_make(address.arena, is_mapped, make))
    }

    async fn fetch_all(&self, endpoint: &str, wants: Vec<Want>, time: Duration) -> Vec<Fetched> {
        if wants.is_empty() {
            return Vec::new();
        }
        let block_bytes = self.config.block_bytes;
        if wants
            .iter()
            .any(|want| want.into.bytes().len() != block_bytes)
        {
            tracing::error!(block_bytes, "a slot does not have the size of a block");
            return unreachable(wants);
        }
        let until = Instant::now() + time;
        let Some(link) = self.link(endpoint) else {
            return unreachable(wants);
        };
        let Some(arena) = link.attached(until).await else {
            return unreachable(wants);
        };
        let in_memory = |want: &Want| want.location.tier == Tier::Host;
        if wants.iter().all(in_memory) {
            return self.copy_all(arena, wants, until, None).await;
        }
        let places = 0..wants.len();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            places.zip(wants).partition(|(_, want)| in_memory(want));
        let (mut places, here): (Vec<usize>, Vec<Want>) = here.into_iter().unzip();
        let (others, elsewhere): (Vec<usize>, Vec<Want>) = elsewhere.into_iter().unzip();
        places.extend(others);
        let here = self.copy_all(arena.clone(), here, until, None);
        let elsewhere = self.copy_staged(&link, &arena, elsewhere, until);
        let (mut fetched, staged) = join(here, elsewhere).await;
        fetched.extend(staged);
        in_order(places.into_iter().zip(fetched))
    }

    /// Copies blocks that the owner brings to memory first.
    async fn copy_staged(
        &self,
        link: &Link,
        arena: &Arc<MappedArena>,
        wants: Vec<Want>,
        until: Instant,
    ) -> Vec<Fetched> {
        let mut fetched = Vec::with_capacity(wants.len());
        let mut wants = wants.into_iter();
        while wants.len() > 0 {
            let next = wants.as_slice().iter().take(wire::COUNT_MAX);
            let named: Vec<_> = next.map(|want| (want.location, want.key)).collect();
            let Some(held) = link.hold(&named, until).await else {
                break;
            };
            let locations = held.locations.clone();
            let (mut places, mut here, mut absent) = (Vec::new(), Vec::new(), Vec::new());
            let part = wants.by_ref().take(locations.len());
            for (place, (want, at)) in part.zip(locations).enumerate() {
                if let Some(location) = at {
                    places.push(place);
                    here.push(Want { location, ..want });
                } else {
                    absent.push((place, stale(want)));
                }
            }
            let copied = self.copy_all(arena.clone(), here, until, Some(held)).await;
            fetched.extend(in_order(places.into_iter().zip(copied).chain(absent)));
        }
        fetched.extend(wants.map(lost));
        fetched
    }

    /// Copies blocks that are in the owner's memory; `held` keeps them there.
    async fn copy_all(
        &self,
        arena: Arc<MappedArena>,
        wants: Vec<Want>,
        until: Instant,
        held: Option<Held>,
    ) -> Vec<Fetched> {
        let bytes = self.config.block_bytes * wants.len();
        if bytes <= INLINE_BYTES {
            return wants.into_iter().map(|want| copy(&arena, want)).collect();
        }
        let copiers = (bytes / SHARE_BYTES).clamp(1, self.config.copiers.max(1));
        let batch = Abandon(Batch::new(arena, wants, until, held));
        let copier = |_| {
            let batch = batch.0.clone();
            spawn_blocking(move || batch.work())
        };
        join_all((0..copiers.min(batch.0.count)).map(copier)).await;
        batch.0.answer()
    }

    fn lock(&self) -> MutexGuard<'_, Remembered<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for HostTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn reaches(&self, endpoint: &str) -> bool {
        Address::parse(endpoint).is_some_and(|address| address.host == self.host)
    }

    fn fetch<'a>(
        &'a self,
        endpoint: &'a str,
        wants: Vec<Want>,
        deadline: Duration,
    ) -> BoxFuture<'a, Vec<Fetched>> {
        Box::pin(self.fetch_all(endpoint, wants, deadline))
    }

    fn is_local(&self) -> bool {
        true
    }

    fn stages(&self) -> bool {
        true
    }

    fn report(&self, endpoint: &str, suspect: Suspect) {
        if let Some(link) = self.link(endpoint) {
            link.report(suspect);
        }
    }
}

impl std::fmt::Debug for HostTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostTransport")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Wants that several threads copy, block by block.
struct Batch {
    arena: Arc<MappedArena>,
    until: Instant,
    count: usize,
    abandoned: AtomicBool,
    state: Mutex<State>,
    /// Keeps the blocks where they are.
    _held: Option<Held>,
}

struct State {
    todo: VecDeque<(usize, Want)>,
    done: Vec<(usize, Fetched)>,
}

impl Batch {
    fn new(
        arena: Arc<MappedArena>,
        wants: Vec<Want>,
        until: Instant,
        held: Option<Held>,
    ) -> Arc<Self> {
        Arc::new(Self {
            arena,
            until,
            count: wants.len(),
            abandoned: AtomicBool::new(false),
            state: Mutex::new(State {
                done: Vec::with_capacity(wants.len()),
                todo: wants.into_iter().enumerate().collect(),
            }),
            _held: held,
        })
    }

    /// Copies blocks until none is left, nobody wants them any more, or it is too late.
    fn work(&self) {
        while !self.abandoned.load(Ordering::Relaxed) && Instant::now() < self.until {
            let Some((place, want)) = self.lock().todo.pop_front() else {
                return;
            };
            let fetched = copy(&self.arena, want);
            self.lock().done.push((place, fetched));
        }
    }

    /// All wants in order; those that were not copied are unreachable.
    fn answer(&self) -> Vec<Fetched> {
        let mut state = self.lock();
        let todo = std::mem::take(&mut state.todo);
        let mut done = std::mem::take(&mut state.done);
        drop(state);
        done.extend(todo.into_iter().map(|(place, want)| (place, lost(want))));
        in_order(done)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch whose threads stop at the next block when its fetch is dropped.
struct Abandon(Arc<Batch>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
    }
}

/// What was fetched, by the places of the wants.
fn in_order(fetched: impl IntoIterator<Item = (usize, Fetched)>) -> Vec<Fetched> {
    let mut fetched: Vec<_> = fetched.into_iter().collect();
    fetched.sort_unstable_by_key(|(place, _)| *place);
    fetched.into_iter().map(|(_, fetched)| fetched).collect()
}

fn is_mapped(link: &Arc<Link>) -> bool {
    link.arena().is_some()
}

fn copy(arena: &MappedArena, want: Want) -> Fetched {
    Fetched {
        outcome: arena.fetch(want.location, want.key, want.into.bytes()),
        into: want.into,
    }
}

fn lost(want: Want) -> Fetched {
    Fetched {
        outcome: FetchOutcome::Unreachable,
        into: want.into,
    }
}

fn stale(want: Want) -> Fetched {
    Fetched {
        outcome: FetchOutcome::Stale,
        into: want.into,
    }
}

fn unreachable(wants: Vec<Want>) -> Vec<Fetched> {
    wants.into_iter().map(lost).collect()
}
