//! The suite that every transport runs, with payloads copied and with payloads sent by reference.

use std::net::TcpListener;
use std::sync::Arc;

use flexkv_ports::conformance::{TransportHarness, transport};
use flexkv_ports::{BlockTier, BoxFuture, Suspect, SuspectReceiver, Transport, suspects};
use flexkv_tcp::{ServerConfig, TcpServer, TcpTransport, Tls, TransportConfig};

use crate::support::{FileTier, config, heap, serve, server_config};

pub(crate) struct Harness {
    owner: Arc<dyn BlockTier>,
    reader: Arc<dyn BlockTier>,
    transport: Arc<TcpTransport>,
    server: TcpServer,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl Harness {
    fn new(owner: Arc<dyn BlockTier>, by_reference: Option<usize>) -> Self {
        let server = ServerConfig {
            by_reference,
            ..server_config()
        };
        Self::with(owner, server)
    }

    /// Both ends inside TLS.
    pub(crate) fn secured(owner: Arc<dyn BlockTier>, tls: Tls) -> Self {
        let server = ServerConfig {
            tls: Some(tls),
            ..server_config()
        };
        Self::with(owner, server)
    }

    fn with(owner: Arc<dyn BlockTier>, server: ServerConfig) -> Self {
        let shape = owner.shape();
        let (tell, suspects) = suspects();
        let server = ServerConfig {
            suspects: Some(tell),
            ..server
        };
        let reader = TransportConfig {
            tls: server.tls.clone(),
            ..config(shape.block_bytes)
        };
        Self {
            reader: heap(shape.slots, shape.block_bytes),
            transport: Arc::new(TcpTransport::new(reader)),
            server: serve(owner.clone(), server),
            owner,
            suspects: tokio::sync::Mutex::new(suspects),
        }
    }
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        self.owner.clone()
    }

    fn endpoint(&self) -> String {
        self.server.endpoint().to_owned()
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        self.reader.clone()
    }

    fn transport(&self) -> Arc<dyn Transport> {
        self.transport.clone()
    }

    fn dead_endpoint(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let scheme = self.transport.scheme();
        format!("{scheme}://{}", listener.local_addr().expect("its address"))
    }

    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        Some(Box::pin(async {
            let next = self.suspects.lock().await.next().await;
            next.expect("the server keeps its end")
        }))
    }
}

#[tokio::test]
async fn conforms_with_copied_payloads() {
    transport(async |slots, bytes| Harness::new(heap(slots, bytes), None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_with_payloads_sent_by_reference() {
    transport(async |slots, bytes| Harness::new(FileTier::new(slots, bytes), Some(1))).await;
}
