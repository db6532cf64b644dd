//! The metrics service as a scraper sees it.

use metrics::{Key, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;

async fn ask(server: &MetricsServer, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn a_scraper_gets_the_counters_and_others_an_explanation() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metadata = Metadata::new("tests", Level::INFO, None);
    recorder
        .register_counter(&Key::from_name("some_total"), &metadata)
        .increment(7);
    let asked = recorder.register_gauge(&Key::from_name("asked"), &metadata);
    let address = "127.0.0.1:0".parse().unwrap();
    let address = MetricsAddress::take(address).await.unwrap();
    let server = address.serve(recorder.handle(), move || asked.increment(1));
    assert_eq!(server.url(), format!("http://{}/metrics", server.address));

    let reply = ask(&server, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.contains("some_total 7\n"), "{reply}");
    assert!(reply.contains("asked 1\n"), "observed just before: {reply}");
    for (request, status) in [
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        ("", "400"),
    ] {
        let reply = ask(&server, request).await;
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {reply}"
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may answer and close before it has read all of a request that is too long.
    let _ = stream.write_all(long.as_bytes()).await;
    assert!(
        ask(&server, "GET / HTTP/1.1\r\n\r\n")
            .await
            .contains("some_total 7")
    );
}
