//! Serves the node's metrics as Prometheus text over HTTP.
//!
//! Just enough HTTP/1.1 for a scraper: one GET a connection, everything bounded. Knows nothing of
//! what the metrics say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest request that is read.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// How long a scraper may take, from connecting to having the answer.
const SCRAPE_WITHIN: Duration = Duration::from_secs(10);
/// Scrapers served at a time; others wait.
const MAX_SCRAPERS: usize = 16;
/// How often old samples of histograms are folded.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Wait after a failed accept, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Gives the text to answer with.
type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// An address that is taken, where nobody is answered yet.
pub struct MetricsAddress {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsAddress {
    /// Takes `address`; port 0 takes a free one.
    pub async fn take(address: SocketAddr) -> Result<Self> {
        let cannot = || format!("cannot serve metrics at {address}");
        let listener = TcpListener::bind(address).await.with_context(cannot)?;
        let address = listener.local_addr().with_context(cannot)?;
        Ok(Self { listener, address })
    }

    /// Answers scrapers there with what `handle` renders once `observe` has been called.
    pub fn serve(
        self,
        handle: PrometheusHandle,
        observe: impl Fn() + Send + Sync + 'static,
    ) -> MetricsServer {
        let upkeep = handle.clone();
        let upkeep = tokio::spawn(async move {
            loop {
                sleep(UPKEEP_EVERY).await;
                upkeep.run_upkeep();
            }
        });
        let render = Arc::new(move || {
            observe();
            handle.render()
        });
        MetricsServer {
            address: self.address,
            tasks: [tokio::spawn(accept(self.listener, render)), upkeep],
        }
    }
}

/// A running service; ends when dropped.
pub struct MetricsServer {
    address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl MetricsServer {
    /// Where a scraper gets the metrics.
    pub fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, render: Render) {
    let room = Arc::new(Semaphore::new(MAX_SCRAPERS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let render = render.clone();
                tokio::spawn(async move {
                    // A scraper that goes away or dawdles has lost its own answer only.
                    let _ = timeout(SCRAPE_WITHIN, answer(stream, &render)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scraper");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, render: &Render) -> std::io::Result<()> {
    let head = head(&mut stream).await?;
    let mut words = head.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics" | "/")) => ("200 OK", render()),
        (Some("GET"), Some(_)) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        (Some(_), Some(_)) => ("405 Method Not Allowed", "only GET is served\n".to_owned()),
        _ => ("400 Bad Request", "not an HTTP request\n".to_owned()),
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// The request's first line, once all of its head was read.
async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let ends = |head: &[u8]| head.windows(4).any(|four| four == b"\r\n\r\n");
    while !ends(&head) && head.len() < MAX_REQUEST_BYTES {
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await? {
            0 => break,
            n => head.extend_from_slice(&piece[..n]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests;
