//! Greetings that end too soon.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;

/// Bytes that an owner says in an accepting greeting.
const GREETING_BYTES: usize = WELCOME_BYTES + PROOF_BYTES + VERDICT_BYTES;

/// A middleman for one connection: passes on so many bytes of the owner, then hangs up. Files are not
/// passed on.
fn middleman(owner: &str, number: u64, cut: usize) -> JoinHandle<()> {
    let name = |number: &str| {
        let name = format!("flexkv-shm-{number}");
        SocketAddr::from_abstract_name(name).expect("a name")
    };
    let owner = UnixStream::connect_addr(&name(owner)).expect("an owner");
    let listener = UnixListener::bind_addr(&name(&format!("{number:016x}"))).expect("a name");
    std::thread::spawn(move || {
        let (reader, _) = listener.accept().expect("a reader");
        let mut from_reader = reader.try_clone().expect("a descriptor");
        let mut to_owner = owner.try_clone().expect("a descriptor");
        let there = std::thread::spawn(move || std::io::copy(&mut from_reader, &mut to_owner));
        let (mut left, mut bytes) = (cut, [0; 512]);
        while left > 0 {
            let most = left.min(bytes.len());
            let read = (&owner).read(&mut bytes[..most]).expect("the owner speaks");
            (&reader).write_all(&bytes[..read]).expect("room to send");
            left -= read;
        }
        for stream in [&reader, &owner] {
            // The other side may have hung up before.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // Ends with either stream.
        let _ = there.join();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_is_cut_short_costs_the_blocks_and_no_buffer() {
    let tier = arena(2, BYTES);
    let stored = store(&tier, 2);
    let server = share(&tier);
    let (host, owner) = server.endpoint().rsplit_once('/').expect("a number");
    for cut in [
        0,
        1,
        WELCOME_BYTES,
        WELCOME_BYTES + 1,
        GREETING_BYTES - 1,
        GREETING_BYTES,
    ] {
        let number = fastrand::Rng::new().u64(..);
        let middleman = middleman(owner, number, cut);
        let endpoint = format!("{host}/{number:016x}");
        let reader = Reader::new(config(BYTES));
        let outcomes = reader.fetch(&endpoint, &stored).await;
        assert_eq!(outcomes, [FetchOutcome::Unreachable; 2], "cut after {cut}");
        let reason = reader.transport.last_refusal(&endpoint).expect("a reason");
        assert_eq!(
            reason == "the owner sent no file",
            cut == GREETING_BYTES,
            "{reason}"
        );
        assert_eq!(
            (reader.transport.mapped(), reader.tier.free_slots()),
            (0, 64)
        );
        middleman.join().expect("no panic");
    }
}
