//! A small HTTP client: plain HTTP/1.1, kept connections, bounded answers. Knows nothing of what is
//! asked.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio::time::timeout;

/// How long a server may take to accept a connection.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: less than servers keep theirs, so that none is used just
/// when it is closed.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// Longest answer that is read as a whole.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HttpError {
    /// Nobody accepts connections there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke, or what came is not HTTP.
    #[error("connection lost: {0}")]
    Lost(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Where a server is: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    host: String,
    port: u16,
}

impl BaseUrl {
    /// The server at `port` of `host`.
    pub fn new(host: &str, port: u16) -> Self {
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        Self { host, port }
    }

    /// The server `number` ports further on the same host; `None` if there is no such port.
    pub fn next(&self, number: usize) -> Option<Self> {
        let port = u16::try_from(usize::from(self.port) + number).ok()?;
        Some(Self::new(&self.host, port))
    }

    /// The server's host; an IPv6 address has no brackets.
    pub fn host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = |why: &str| format!("`{text}` {why}: expected http://host:port");
        let uri: Uri = text.parse().map_err(|_| no("is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(no("needs TLS, which is not supported")),
            _ => return Err(no("is not an HTTP URL")),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(no("has a path"));
        }
        let host = uri.host().ok_or_else(|| no("has no host"))?;
        let named = uri.port_u16();
        let place = named.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        if uri.authority().is_none_or(|given| given.as_str() != place) {
            return Err(no("is not a host and a port"));
        }
        Ok(Self::new(host, named.unwrap_or(80)))
    }
}

/// The client; clones share connections.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Http {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECTED_WITHIN));
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(KEPT_FOR)
                .build(connector),
        }
    }
}

impl Http {
    /// Gets `url`, all of it `within` a time.
    pub async fn get(&self, url: &str, within: Duration) -> Result<(StatusCode, Bytes), HttpError> {
        let request = self.send(Method::GET, url, Bytes::new());
        let answer = async {
            let (status, body) = request.await?;
            Ok((status, read(body).await?))
        };
        timeout(within, answer)
            .await
            .map_err(|_| HttpError::Late(within))?
    }

    /// Posts the JSON `body` to `url`. The answer's body is still to be read.
    pub async fn post(
        &self,
        url: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Incoming), HttpError> {
        self.send(Method::POST, url, body.into()).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Incoming), HttpError> {
        let mut request = Request::builder().method(method).uri(url);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| HttpError::Connect(error.to_string()))?;
        match self.client.request(request).await {
            Ok(answer) => Ok((answer.status(), answer.into_body())),
            Err(error) if error.is_connect() => Err(HttpError::Connect(deepest(&error))),
            Err(error) => Err(HttpError::Lost(deepest(&error))),
        }
    }
}

/// All of `body`.
pub async fn read(body: Incoming) -> Result<Bytes, HttpError> {
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(HttpError::Lost(deepest(error.as_ref()))),
    }
}

/// What lies behind `error`: the outer ones only say where it happened.
pub fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests;
