//! Tests of the relay over real sockets.

use super::*;

/// An owner that sends `bytes` bytes to whoever connects, once it was sent one.
async fn owner(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(&vec![asked[0]; bytes]).await.unwrap();
        }
    });
    address
}

/// Asks through the relay, and returns what came and how long that took.
async fn ask(relay: &Relay, word: u8) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(relay.address()).await.unwrap();
    stream.write_all(&[word]).await.unwrap();
    let mut came = Vec::new();
    stream.read_to_end(&mut came).await.unwrap();
    (came, began.elapsed())
}

#[tokio::test]
async fn bytes_pass_both_ways_unchanged() {
    let relay = Relay::start(owner(100_000).await).await.unwrap();
    assert_eq!(ask(&relay, 7).await.0, vec![7; 100_000]);
    assert_eq!(ask(&relay, 8).await.0, vec![8; 100_000]);
}

#[tokio::test]
async fn all_connections_together_have_the_rate() {
    let relay = Relay::start(owner(200_000).await).await.unwrap();
    relay.set_rate(1e6);
    let (one, other) = tokio::join!(ask(&relay, 1), ask(&relay, 2));
    assert_eq!((one.0.len(), other.0.len()), (200_000, 200_000));
    let took = one.1.max(other.1);
    assert!(
        took >= Duration::from_millis(390),
        "400,000 bytes in {took:?}"
    );
}
