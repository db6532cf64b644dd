//! Two nodes of one host: the conformance suite, who is let in, and owners that go.

mod cut;
mod staged;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Generation, Location, NamespaceId, SlotId, Tier};
use flexkv_handshake::{
    Asking, CONFIRM_BYTES, Credential, GreetError, PROOF_BYTES, Refusal, Refusals, VERDICT_BYTES,
    WELCOME_BYTES,
};
use flexkv_ports::conformance::{TransportHarness, transport};
use flexkv_ports::{
    BlockTier, BoxFuture, FetchOutcome, HeapTier, Suspect, SuspectReceiver, TierShape, Transport,
    Want, suspects,
};
use metrics::{Counter, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::server::terms;
use super::*;
use crate::{HostConfig, HostTier};

const NAMESPACE: NamespaceId = NamespaceId::from_u128(0xfeed);
const BYTES: usize = 100_000;
const DEADLINE: Duration = Duration::from_secs(20);

fn credential(secret: &str) -> Credential {
    Credential::new(secret.as_bytes(), "a-node")
}

fn arena(slots: u32, block_bytes: usize) -> HostTier {
    HostTier::create(&HostConfig {
        slots,
        block_bytes,
        namespace: NAMESPACE,
        arena: fastrand::Rng::new().u64(..),
        huge_pages: false,
        populate: false,
    })
    .expect("a small arena")
}

fn share(tier: &HostTier) -> ShareServer {
    ShareServer::start(tier, ShareConfig::new(credential("s"))).expect("a server")
}

fn config(block_bytes: usize) -> HostTransportConfig {
    HostTransportConfig::new(NAMESPACE, block_bytes, credential("s"))
}

fn key(n: u8) -> BlockKey {
    BlockKey::from_u128(u128::from(n) << 64 | 5)
}

/// Stores blocks of equal bytes, `0..count`.
fn store(tier: &HostTier, count: u8) -> Vec<(Location, u8)> {
    let block_bytes = tier.shape().block_bytes;
    let put = |n| {
        let slot = tier.reserve().expect("a free slot");
        let bytes = vec![n; block_bytes];
        slot.bytes().write(0, &bytes);
        (tier.commit(slot, key(n), Checksum::of(&bytes)), n)
    };
    (0..count).map(put).collect()
}

struct Reader {
    transport: HostTransport,
    tier: HeapTier,
}

impl Reader {
    fn new(config: HostTransportConfig) -> Self {
        let shape = TierShape {
            tier: Tier::Host,
            slots: 64,
            block_bytes: config.block_bytes,
        };
        Self {
            transport: HostTransport::new(config).expect("this host has a name"),
            tier: HeapTier::new(shape),
        }
    }

    /// The outcomes of a fetch; what was fetched must be the blocks.
    async fn fetch(&self, endpoint: &str, blocks: &[(Location, u8)]) -> Vec<FetchOutcome> {
        let want = |(location, n): &(Location, u8)| Want {
            location: *location,
            key: key(*n),
            into: self.tier.reserve().expect("a free slot at the reader"),
        };
        let wants = blocks.iter().map(want).collect();
        let fetched = self.transport.fetch(endpoint, wants, DEADLINE).await;
        assert_eq!(fetched.len(), blocks.len());
        for ((_, n), fetched) in blocks.iter().zip(&fetched) {
            if matches!(fetched.outcome, FetchOutcome::Fetched(_)) {
                let bytes = fetched.into.bytes().to_vec();
                assert!(bytes.iter().all(|byte| byte == n), "bytes of block {n}");
            }
        }
        fetched.iter().map(|fetched| fetched.outcome).collect()
    }

    async fn eventually_unmaps(&self) {
        for _ in 0..10_000 {
            if self.transport.mapped() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("the arena of an owner that has gone stays mapped");
    }
}

fn all_fetched(outcomes: &[FetchOutcome]) -> bool {
    let fetched = |outcome: &FetchOutcome| matches!(outcome, FetchOutcome::Fetched(_));
    outcomes.iter().all(fetched)
}

struct Harness {
    owner: HostTier,
    reader: Arc<dyn BlockTier>,
    transport: Arc<HostTransport>,
    server: ShareServer,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        Arc::new(self.owner.clone())
    }

    fn endpoint(&self) -> String {
        self.server.endpoint().to_owned()
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        self.reader.clone()
    }

    fn transport(&self) -> Arc<dyn Transport> {
        self.transport.clone()
    }

    fn dead_endpoint(&self) -> String {
        let (host, _) = self.server.endpoint().rsplit_once('/').expect("a host");
        format!("{host}/{:016x}", fastrand::Rng::new().u64(..))
    }

    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        Some(Box::pin(async {
            let next = self.suspects.lock().await.next().await;
            next.expect("the server keeps its end")
        }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_conforms() {
    transport(async |slots, block_bytes| {
        let owner = arena(slots, block_bytes);
        let (tell, suspects) = suspects();
        let served = ShareConfig {
            suspects: Some(tell),
            ..ShareConfig::new(credential("s"))
        };
        Harness {
            reader: Arc::new(arena(slots, block_bytes)),
            transport: Arc::new(HostTransport::new(config(block_bytes)).expect("a name")),
            server: ShareServer::start(&owner, served).expect("a server"),
            owner,
            suspects: tokio::sync::Mutex::new(suspects),
        }
    })
    .await;
}

#[tokio::test]
async fn the_arena_is_mapped_once_and_let_go_with_its_server() {
    let tier = arena(8, BYTES);
    let stored = store(&tier, 8);
    let server = share(&tier);
    let reader = Reader::new(config(BYTES));
    for _ in 0..3 {
        assert!(all_fetched(&reader.fetch(server.endpoint(), &stored).await));
        assert_eq!((reader.transport.mapped(), server.readers()), (1, 1));
    }
    let endpoint = server.endpoint().to_owned();
    drop(server);
    reader.eventually_unmaps().await;
    let outcomes = reader.fetch(&endpoint, &stored).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable; 8]);
}

#[tokio::test]
async fn an_owner_of_the_same_name_that_starts_anew_is_another_one() {
    let reader = Reader::new(config(BYTES));
    let mut old: Option<(String, Vec<(Location, u8)>)> = None;
    for _ in 0..2 {
        let tier = arena(4, BYTES);
        let stored = store(&tier, 4);
        let server = share(&tier);
        assert!(all_fetched(&reader.fetch(server.endpoint(), &stored).await));
        if let Some((endpoint, blocks)) = old {
            let outcomes = reader.fetch(&endpoint, &blocks).await;
            assert_eq!(outcomes, [FetchOutcome::Unreachable; 4]);
        }
        old = Some((server.endpoint().to_owned(), stored));
    }
}

#[tokio::test]
async fn memory_of_another_host_is_not_reached() {
    let tier = arena(1, BYTES);
    let server = share(&tier);
    let reader = Reader::new(config(BYTES));
    let (_, number) = server.endpoint().rsplit_once('/').expect("a number");
    let elsewhere = format!("shm://another-host/{number}");
    assert!(reader.transport.reaches(server.endpoint()));
    assert!(!reader.transport.reaches(&elsewhere));
    assert!(!reader.transport.reaches("tcp://127.0.0.1:80"));
    let outcomes = reader.fetch(&elsewhere, &store(&tier, 1)).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable]);
    assert_eq!(reader.transport.mapped(), 0);
}

/// Keeps the counters that are registered, to be read by their label `reason`.
#[derive(Default)]
struct Counted(std::sync::Mutex<Vec<(String, Arc<AtomicU64>)>>);

impl Counted {
    fn of(&self, reason: Refusal) -> u64 {
        let counters = self.0.lock().expect("no panic");
        let counter = counters.iter().find(|(name, _)| name == reason.name());
        counter.expect("registered").1.load(Ordering::Relaxed)
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let reason = key.labels().find(|label| label.key() == "reason");
        let reason = reason.expect("a reason").value().to_owned();
        let count = Arc::new(AtomicU64::new(0));
        let mut counters = self.0.lock().expect("no panic");
        counters.push((reason, count.clone()));
        Counter::from_arc(count)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

/// A server for one reader at a time, and what it counts.
fn counted_share(tier: &HostTier) -> (ShareServer, Counted) {
    let counted = Counted::default();
    let config = ShareConfig {
        max_readers: 1,
        refusals: Refusals::register(&counted, "a-node", "shm"),
        ..ShareConfig::new(credential("s"))
    };
    (ShareServer::start(tier, config).expect("a server"), counted)
}

#[tokio::test]
async fn strangers_are_refused_told_why_and_counted() {
    let tier = arena(2, BYTES);
    let stored = store(&tier, 2);
    let (server, counted) = counted_share(&tier);
    let secret = HostTransportConfig::new(NAMESPACE, BYTES, credential("wrong"));
    let namespace = HostTransportConfig {
        namespace: NamespaceId::from_u128(1),
        ..config(BYTES)
    };
    for (config, refusal, words) in [
        (secret, Refusal::Secret, "another secret"),
        (namespace, Refusal::Namespace, "is not served here"),
        (
            config(4096),
            Refusal::BlockSize,
            "100000 bytes here, not 4096",
        ),
    ] {
        let reader = Reader::new(config);
        let outcomes = reader.fetch(server.endpoint(), &stored).await;
        assert_eq!(outcomes, [FetchOutcome::Unreachable; 2], "{refusal:?}");
        let reason = reader.transport.last_refusal(server.endpoint());
        let reason = reason.expect("a reason");
        assert!(reason.contains(words), "`{reason}` does not say `{words}`");
        assert_eq!(counted.of(refusal), 1, "{refusal:?}");
        assert_eq!(reader.transport.mapped(), 0);
    }
    let first = Reader::new(config(BYTES));
    assert!(all_fetched(&first.fetch(server.endpoint(), &stored).await));
    assert_eq!(first.transport.last_refusal(server.endpoint()), None);
    let second = Reader::new(config(BYTES));
    let outcomes = second.fetch(server.endpoint(), &stored).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable; 2]);
    assert_eq!(counted.of(Refusal::TooManyConnections), 1);
}

/// A greeting that was listened to and is played again: the bytes are good, the time is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_is_played_again_gets_no_file_and_is_counted() {
    let tier = arena(1, BYTES);
    let (server, counted) = counted_share(&tier);
    let (_, number) = server.endpoint().rsplit_once('/').expect("a number");
    let name = SocketAddr::from_abstract_name(format!("flexkv-shm-{number}")).expect("a name");
    let dial = || {
        let stream = UnixStream::connect_addr(&name).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        stream
    };
    let (asking, opening) =
        Asking::begin(&credential("s"), terms(NAMESPACE, BYTES)).expect("begun");
    let answer = |mut stream: &UnixStream| {
        stream.write_all(&opening).expect("sent");
        let mut reply = [0; WELCOME_BYTES + PROOF_BYTES];
        stream.read_exact(&mut reply).expect("an answer");
        reply
    };
    let judged = |mut stream: &UnixStream, confirm: &[u8; CONFIRM_BYTES]| {
        stream.write_all(confirm).expect("sent");
        let mut verdict = [0; VERDICT_BYTES];
        stream.read_exact(&mut verdict).expect("a verdict");
        verdict
    };
    let honest = dial();
    let reply = answer(&honest);
    let (welcome, proof) = reply.split_first_chunk().expect("a welcome");
    let (proving, confirm) = asking
        .confirm(welcome, proof)
        .expect("the owner proves itself");
    assert!(proving.accepted(&judged(&honest, &confirm)).is_ok());

    let replayed = dial();
    answer(&replayed);
    let verdict = judged(&replayed, &confirm);
    let (other, _) = Asking::begin(&credential("s"), terms(NAMESPACE, BYTES)).expect("begun");
    let heard = other.confirm(
        verdict.first_chunk().expect("a welcome"),
        &verdict[WELCOME_BYTES..],
    );
    match heard.err() {
        Some(GreetError::Refused { refusal, .. }) => assert_eq!(refusal, Refusal::Unproven),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(counted.of(Refusal::Unproven), 1);
    let rest = (&replayed).read(&mut [0]).expect("the end");
    assert_eq!(rest, 0, "the connection is closed");
}

const OWNER: &str = "FLEXKV_HOST_TEST_OWNER";

/// An owner in a process of its own: this program, running one test that then is the owner.
struct OwnerProcess {
    child: Child,
    endpoint: String,
    blocks: Vec<(Location, u8)>,
}

impl OwnerProcess {
    fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture", "--quiet"])
            .env(OWNER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let told = lines
            .map(|line| line.expect("a line"))
            .find(|line| line.contains("shm://"));
        let told = told.expect("an endpoint");
        let endpoint = &told[told.find("shm://").expect("found")..];
        let block = |n| {
            let location = Location {
                tier: Tier::Host,
                slot: SlotId(u32::from(n)),
                generation: Generation::FIRST,
            };
            (location, n)
        };
        Self {
            child,
            endpoint: endpoint.trim().to_owned(),
            blocks: (0..32).map(block).collect(),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("it is there");
    }
}

impl OwnerProcess {
    /// Stops the process; each of its threads has stopped when this returns.
    fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let status = task.expect("a thread").path().join("status");
            let status = std::fs::read_to_string(status).expect("its status");
            status.contains("State:\tT")
        };
        while !std::fs::read_dir(&tasks).expect("its threads").all(stopped) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        self.child.wait().expect("it ends");
    }
}

/// What the process of [`OwnerProcess`] does, until it is killed or its input closes.
async fn be_the_owner() {
    let tier = arena(32, 1 << 20);
    store(&tier, 32);
    let server = share(&tier);
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.endpoint()).expect("told");
    out.flush().expect("told");
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]).expect("its input"))
        .await
        .expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_in_the_middle_costs_its_blocks_and_nothing_else() {
    if std::env::var_os(OWNER).is_some() {
        return be_the_owner().await;
    }
    let test =
        "share::tests::an_owner_that_is_killed_in_the_middle_costs_its_blocks_and_nothing_else";
    let owner = OwnerProcess::start(test);
    let reader = Reader::new(config(1 << 20));
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    let fetching = async {
        let mut fetched = 0;
        loop {
            let outcomes = reader.fetch(&owner.endpoint, &owner.blocks).await;
            if outcomes == [FetchOutcome::Unreachable; 32] {
                return fetched;
            }
            assert!(all_fetched(&outcomes), "{outcomes:?}");
            fetched += 1;
        }
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        owner.signal(rustix::process::Signal::KILL);
    };
    let both = async { tokio::join!(fetching, killing) };
    let (fetched, ()) = tokio::time::timeout(DEADLINE, both).await.expect("an end");
    assert!(fetched > 0, "it was killed before the first fetch");
    reader.eventually_unmaps().await;
    assert_eq!(reader.tier.free_slots(), 64, "buffers return");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_stopped_is_still_read() {
    if std::env::var_os(OWNER).is_some() {
        return be_the_owner().await;
    }
    let test = "share::tests::an_owner_that_is_stopped_is_still_read";
    let owner = OwnerProcess::start(test);
    let reader = Reader::new(config(1 << 20));
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    owner.stop();
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    let newcomer = Reader::new(HostTransportConfig {
        open_time: Duration::from_millis(200),
        ..config(1 << 20)
    });
    let outcomes = newcomer.fetch(&owner.endpoint, &owner.blocks).await;
    assert_eq!(outcomes, [FetchOutcome::Unreachable; 32]);
    owner.signal(rustix::process::Signal::CONT);
}
