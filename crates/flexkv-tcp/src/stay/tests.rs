//! Tests of who stays where, on real sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use super::*;

fn cores() -> CpuSet {
    sched_getaffinity(None).expect("known")
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

fn all() -> Vec<usize> {
    let cores = cores();
    (0..CpuSet::MAX_CPU)
        .filter(|core| cores.is_set(*core))
        .collect()
}

/// Both ends of a connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let reader = TcpStream::connect(address).expect("a connection");
    let (owner, _) = listener.accept().expect("a connection");
    (reader, owner)
}

/// A byte goes to the owner from `core`.
fn ask(reader: &mut TcpStream, owner: &mut TcpStream, core: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            // This thread may not run on more cores than the one that started it, until it asks.
            sched_setaffinity(None, &only(core)).expect("a core");
            reader.write_all(&[1]).expect("room");
        });
    });
    owner.read_exact(&mut [0]).expect("a byte");
}

#[test]
fn a_thread_has_its_cores_back() {
    let before = cores();
    let stay = Stay::here().expect("leave to stay");
    assert_eq!(cores(), only(stay.core));
    assert_eq!(sched_getcpu(), stay.core);
    drop(stay);
    assert_eq!(cores(), before);
}

#[test]
fn a_thread_does_not_go_where_it_may_not_run() {
    let all = all();
    let _stay = Stay::on(all[0]).expect("a core");
    for elsewhere in &all[1..] {
        assert!(Stay::on(*elsewhere).is_none());
    }
    assert!(Stay::on(usize::MAX).is_none());
    assert_eq!(cores(), only(all[0]));
}

#[test]
fn an_owner_goes_where_its_reader_stays() {
    let (mut reader, mut owner) = connection();
    let before = cores();
    let mut follower = Follower::default();
    for core in all() {
        for _ in 0..2 {
            ask(&mut reader, &mut owner, core);
            follower.follow(&owner);
        }
        assert_eq!(cores(), only(core));
        assert!(follower.stays());
    }
    follower.leave();
    assert_eq!(cores(), before);
    assert!(!follower.stays());
}

#[test]
fn an_owner_does_not_run_after_a_reader_that_moves_about() {
    let (mut reader, mut owner) = connection();
    let before = cores();
    let all = all();
    let mut follower = Follower::default();
    for core in all.iter().cycle().take(2 * all.len()) {
        ask(&mut reader, &mut owner, *core);
        follower.follow(&owner);
        assert!(all.len() == 1 || cores() == before);
    }
}

#[test]
fn two_threads_of_a_peer_do_not_stay_on_one_core() {
    let cores = Cores::default();
    let before = self::cores();
    let first = cores.stay().expect("a free core");
    let on = first.stay.core;
    // A thread starts where the one that starts it may run.
    let second = || thread::scope(|scope| scope.spawn(|| cores.stay().is_some()).join());
    assert!(!second().expect("no panic"));
    drop(first);
    assert_eq!(self::cores(), before);
    assert!(second().expect("no panic"));
    assert!(cores.lock().is_empty(), "core {on} is free again");
}
