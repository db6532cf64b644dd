//! Owners in processes of their own: killed in the middle, stopped, and started anew.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flexkv_block::{Generation, Location, SlotId, Tier};
use flexkv_ports::FetchOutcome;
use flexkv_rdma::RdmaConfig;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    DEADLINE, Reader, all_fetched, all_unreachable, arena, config, eventually, serve_at, store,
};

/// Blocks of an owner, and their size: enough that a fetch takes a while.
const COUNT: u32 = 32;
const LARGE: usize = 256 << 10;
/// Tells the program that it is an owner, and where it serves.
const OWNER: &str = "FLEXKV_RDMA_TEST_OWNER";

/// This program, running one test that then is the owner.
struct OwnerProcess {
    child: Child,
    endpoint: String,
    blocks: Vec<(Location, u32)>,
}

impl OwnerProcess {
    fn start(test: &str, address: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture", "--quiet"])
            .env(OWNER, address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let told = lines
            .map(|line| line.expect("a line"))
            .find(|line| line.contains("rdma://"));
        let told = told.expect("an endpoint");
        let endpoint = &told[told.find("rdma://").expect("found")..];
        let block = |n| {
            let location = Location {
                tier: Tier::Host,
                slot: SlotId(n),
                generation: Generation::FIRST,
            };
            (location, n)
        };
        Self {
            child,
            endpoint: endpoint.trim().to_owned(),
            blocks: (0..COUNT).map(block).collect(),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = Pid::from_raw(pid).expect("a process id");
        kill_process(pid, signal).expect("it is there");
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        self.child.wait().expect("it ends");
    }
}

/// Where this process is to serve, if it is an owner.
fn owners_address() -> Option<SocketAddr> {
    let address = std::env::var(OWNER).ok()?;
    Some(address.parse().expect("an address"))
}

/// What an owner does until it is killed or its input closes.
async fn be_the_owner(address: SocketAddr) {
    let (tier, registered) = arena(COUNT, LARGE);
    store(&tier, COUNT);
    let server = serve_at(address, registered);
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.endpoint()).expect("told");
    out.flush().expect("told");
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]).expect("its input"))
        .await
        .expect("no panic");
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_in_the_middle_costs_its_blocks_and_nothing_else() {
    if let Some(address) = owners_address() {
        return be_the_owner(address).await;
    }
    let test = "processes::an_owner_that_is_killed_in_the_middle_costs_its_blocks_and_nothing_else";
    let owner = OwnerProcess::start(test, anywhere());
    let reader = Reader::new(COUNT, LARGE);
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    let fetching = async {
        loop {
            let got = reader.fetch(&owner.endpoint, &owner.blocks).await;
            if all_unreachable(&got) {
                return;
            }
            let ended = |outcome: &FetchOutcome| {
                matches!(
                    outcome,
                    FetchOutcome::Fetched(_) | FetchOutcome::Unreachable
                )
            };
            assert!(got.iter().all(ended), "{got:?}");
        }
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        owner.signal(Signal::KILL);
    };
    let both = async { tokio::join!(fetching, killing) };
    tokio::time::timeout(DEADLINE, both).await.expect("an end");
    reader.has_all_buffers().await;
    assert_eq!(reader.transport.connected(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_stopped_is_still_read_but_greets_nobody() {
    if let Some(address) = owners_address() {
        return be_the_owner(address).await;
    }
    let test = "processes::an_owner_that_is_stopped_is_still_read_but_greets_nobody";
    let owner = OwnerProcess::start(test, anywhere());
    let reader = Reader::new(COUNT, LARGE);
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    owner.signal(Signal::STOP);
    assert!(all_fetched(
        &reader.fetch(&owner.endpoint, &owner.blocks).await
    ));
    let hasty = RdmaConfig {
        open_time: Duration::from_millis(500),
        ..config()
    };
    let newcomer = Reader::with(hasty, arena(COUNT, LARGE));
    assert!(all_unreachable(
        &newcomer.fetch(&owner.endpoint, &owner.blocks).await
    ));
    let reason = newcomer
        .transport
        .last_refusal(&owner.endpoint)
        .expect("a reason");
    assert_eq!(reason, "no answer within 500ms");
    owner.signal(Signal::CONT);
    let until_it_works = async {
        while !all_fetched(&newcomer.fetch(&owner.endpoint, &owner.blocks).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let worked = tokio::time::timeout(DEADLINE, until_it_works).await;
    worked.expect("it is greeted again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_and_started_at_the_same_address_is_read_again() {
    if let Some(address) = owners_address() {
        return be_the_owner(address).await;
    }
    let test = "processes::an_owner_that_is_killed_and_started_at_the_same_address_is_read_again";
    let owner = OwnerProcess::start(test, anywhere());
    let endpoint = owner.endpoint.clone();
    let address = endpoint
        .strip_prefix("rdma://")
        .expect("an endpoint")
        .parse();
    let reader = Reader::new(COUNT, LARGE);
    assert!(all_fetched(&reader.fetch(&endpoint, &owner.blocks).await));
    drop(owner);
    eventually("the end is noticed", || reader.transport.connected() == 0).await;
    let owner = OwnerProcess::start(test, address.expect("an address"));
    assert_eq!(owner.endpoint, endpoint);
    let until_it_works = async {
        while !all_fetched(&reader.fetch(&endpoint, &owner.blocks).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let worked = tokio::time::timeout(DEADLINE, until_it_works).await;
    worked.expect("it is read again");
    reader.has_all_buffers().await;
}
