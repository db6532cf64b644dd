//! Back-off: a failing peer is left out at once, tried again later, and forgiven when it answers.

use super::*;

const A: OwnerId = OwnerId(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn peers() -> Peers {
    let peers = Peers::new(ms(100), ms(300));
    peers.update(ms(0), table(&["mem://a"]));
    peers
}

/// A table with one peer at these endpoints.
fn table(endpoints: &[&str]) -> BTreeMap<OwnerId, Peer> {
    let endpoints = endpoints.iter().map(|uri| Endpoint::new(0, (*uri).into()));
    let peer = Peer {
        name: "a".into(),
        distance: Distance::Far,
        endpoints: endpoints.collect(),
    };
    BTreeMap::from([(A, peer)])
}

fn left_out(peers: &Peers) -> bool {
    peers.table().excluded.contains(A)
}

#[test]
fn a_failed_peer_is_left_out_and_comes_back_with_growing_waits() {
    let peers = peers();
    assert!(!left_out(&peers));
    let mut now = ms(0);
    for wait in [100, 200, 300, 300] {
        peers.failed(now, A);
        assert!(left_out(&peers));
        peers.tick(now + ms(wait - 1));
        assert!(left_out(&peers), "after {wait}");
        now += ms(wait);
        peers.tick(now);
        assert!(!left_out(&peers), "after {wait}");
    }
}

#[test]
fn many_failures_of_one_outage_count_once() {
    let peers = peers();
    (0..50).for_each(|_| peers.failed(ms(0), A));
    peers.tick(ms(100));
    assert!(!left_out(&peers));
}

#[test]
fn an_answer_forgives() {
    let peers = peers();
    peers.failed(ms(0), A);
    peers.succeeded(ms(1), A);
    assert!(!left_out(&peers));
    peers.failed(ms(2), A);
    peers.tick(ms(102));
    assert!(!left_out(&peers), "the first wait again");
}

#[test]
fn a_peer_without_common_transport_is_left_out_for_good() {
    let peers = Peers::new(ms(1), ms(1));
    peers.update(ms(0), table(&[]));
    peers.tick(ms(1000));
    assert!(left_out(&peers));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_an_endpoint_stays_when_the_table_is_replaced() {
    let peers = peers();
    let link = || peers.table().peers[&A].endpoints[0].link.clone();
    let delivery = link().begin(500);
    tokio::time::advance(ms(500)).await;
    delivery.arrived(500);
    peers.update(ms(500), table(&["mem://new", "mem://a"]));
    let speed = peers.table().peers[&A].speed();
    assert_eq!(speed.rate, Some(1000.0), "of the endpoint that was used");
    peers.update(ms(500), table(&["mem://new"]));
    assert_eq!(link().speed().rate, None);
}
