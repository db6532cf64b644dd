//! Tests of the HTTP client's addresses and errors.

use super::*;

#[test]
fn base_urls_count_ports() {
    let base: BaseUrl = "http://127.0.0.1:30001".parse().unwrap();
    assert_eq!(base.to_string(), "http://127.0.0.1:30001");
    assert_eq!(base.next(0), Some(base.clone()));
    let third = base.next(2).unwrap();
    assert_eq!(
        (third.port(), third.to_string().as_str()),
        (30003, "http://127.0.0.1:30003")
    );
    assert_eq!(base.next(40_000), None);
    let six: BaseUrl = "http://[::1]:80/".parse().unwrap();
    assert_eq!(six.next(1).unwrap().to_string(), "http://[::1]:81");
    assert_eq!(BaseUrl::new("::1", 80), six);
}

#[test]
fn what_is_no_base_url_is_named() {
    for (text, part) in [
        ("https://host:1", "`https://host:1` needs TLS"),
        ("host:1", "`host:1` is not an HTTP URL"),
        ("http://host:1/v1", "has a path"),
        ("http://", "is not a URL"),
        ("http://host:x", "is not a host and a port"),
        ("http://me@host", "is not a host and a port"),
        ("redis://host:1", "is not an HTTP URL"),
    ] {
        let error = text.parse::<BaseUrl>().unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_told_from_nobody_answering() {
    let http = Http::default();
    let within = Duration::from_secs(20);
    // Nothing listens on port 1.
    let error = http.get("http://127.0.0.1:1/", within).await.unwrap_err();
    assert!(
        matches!(&error, HttpError::Connect(why) if why.contains("refused")),
        "{error}"
    );

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let within = Duration::from_millis(50);
    assert_eq!(http.get(&url, within).await, Err(HttpError::Late(within)));
}
