//! Tests of what connections are told, on real sockets.

use std::net::TcpListener;

use super::*;

#[test]
fn a_connection_on_one_host_is_not_paced() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let reader = TcpStream::connect(address).expect("a connection");
    let (owner, _) = listener.accept().expect("a connection");
    for end in [reader, owner] {
        set_up(&end).expect("set up");
        assert_eq!(sockopt::tcp_congestion(&end).expect("known"), ON_HOST);
        assert!(end.nodelay().expect("known"));
    }
}

/// All of 127.0.0.0/8 is this host, but the two ends have different addresses, as those of two hosts have.
#[test]
fn what_the_host_does_for_networks_stays_on_other_connections() {
    let listener = TcpListener::bind(("127.0.0.2", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let reader = TcpStream::connect(address).expect("a connection");
    let usual = sockopt::tcp_congestion(&reader).expect("known");
    assert_ne!(reader.local_addr().expect("known").ip(), address.ip());
    set_up(&reader).expect("set up");
    assert_eq!(sockopt::tcp_congestion(&reader).expect("known"), usual);
}
