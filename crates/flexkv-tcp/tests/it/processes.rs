//! Owners that are processes of their own: stopped, and killed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flexkv_block::Location;
use flexkv_ports::FetchOutcome;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{DEADLINE, Reader, heap, is_fetched, serve, serve_at, server_config, store};

/// Tells this program to be an owner, at this address.
const OWNER: &str = "FLEXKV_TCP_TEST_OWNER";
const BYTES: usize = 256 << 10;
const BLOCKS: u32 = 64;
const UNREACHABLE: FetchOutcome = FetchOutcome::Unreachable;

/// An owner of test blocks, killed when dropped.
struct Owner {
    child: Child,
    endpoint: String,
}

impl Owner {
    fn start(address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "processes::be_an_owner", "--nocapture"])
            .env(OWNER, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = child.stdout.take().expect("its output");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let endpoint = lines.find_map(|line| {
            let at = line.find("tcp://")?;
            Some(line[at..].to_owned())
        });
        Self {
            child,
            endpoint: endpoint.expect("it tells its endpoint"),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it is there");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The owner's process; as a test of its own, nothing.
#[test]
fn be_an_owner() {
    let Ok(address) = std::env::var(OWNER) else {
        return;
    };
    let tier = heap(BLOCKS, BYTES);
    store(&*tier, BLOCKS);
    let address = address.parse().expect("an address");
    let server = serve_at(address, tier, server_config()).expect("a server");
    let mut output = std::io::stdout();
    writeln!(output, "{}", server.endpoint()).expect("room to write");
    let mut until_the_end = Vec::new();
    std::io::stdin()
        .read_to_end(&mut until_the_end)
        .expect("an end");
}

/// Where the blocks of such an owner are.
fn locations() -> Vec<(Location, u32)> {
    store(&*heap(BLOCKS, 1), BLOCKS)
}

#[tokio::test]
async fn an_owner_that_is_stopped_is_missed_and_found_again() {
    let owner = Owner::start("127.0.0.1:0");
    let other = heap(2, BYTES);
    let stored = store(&*other, 2);
    let server = serve(other, server_config());
    let reader = Reader::new(BLOCKS + 2, BYTES);
    let blocks = locations();
    reader.eventually_fetches(&owner.endpoint, &blocks).await;
    for _ in 0..3 {
        owner.signal(Signal::STOP);
        // What the kernel had in its buffers may still come.
        let short = Duration::from_millis(300);
        let outcomes = reader.outcomes(&owner.endpoint, &blocks, short).await;
        assert_eq!(outcomes[BLOCKS as usize - 1], UNREACHABLE);
        reader.eventually_fetches(server.endpoint(), &stored).await;
        reader.all_buffers_return().await;
        owner.signal(Signal::CONT);
        reader.eventually_fetches(&owner.endpoint, &blocks).await;
    }
}

#[tokio::test]
async fn an_owner_that_is_killed_and_restarted_under_its_address_serves_again() {
    let mut owner = Owner::start("127.0.0.1:0");
    let endpoint = owner.endpoint.clone();
    let address = endpoint.strip_prefix("tcp://").expect("an address");
    let reader = Reader::new(BLOCKS, BYTES);
    let blocks = locations();
    for round in 0..4 {
        reader.eventually_fetches(&endpoint, &blocks).await;
        let killing = async {
            tokio::time::sleep(Duration::from_micros(500 * round)).await;
            owner.signal(Signal::KILL);
        };
        let fetching = reader.outcomes(&endpoint, &blocks, DEADLINE);
        let (outcomes, ()) = tokio::join!(fetching, killing);
        let fine = |outcome: &FetchOutcome| is_fetched(outcome) || *outcome == UNREACHABLE;
        assert!(outcomes.iter().all(fine), "{outcomes:?}");
        reader.all_buffers_return().await;
        owner.child.wait().expect("its end");
        let gone = reader.outcomes(&endpoint, &blocks, DEADLINE).await;
        assert_eq!(gone, [UNREACHABLE; BLOCKS as usize]);
        owner = Owner::start(address);
        assert_eq!(owner.endpoint, endpoint);
    }
    reader.eventually_fetches(&endpoint, &blocks).await;
}
