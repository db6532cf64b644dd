//! The suite that all transports run.

use std::sync::Arc;

use flexkv_host::HostTier;
use flexkv_ports::conformance::{TransportHarness, transport};
use flexkv_ports::{BlockTier, BoxFuture, Suspect, SuspectReceiver, Transport, suspects};
use flexkv_rdma::{RdmaServer, RdmaServerConfig, RdmaTransport};

use crate::support::{arena, config, credential, free_address};

struct Harness {
    owner: HostTier,
    reader: HostTier,
    transport: Arc<RdmaTransport>,
    server: RdmaServer,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        Arc::new(self.owner.clone())
    }

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        Arc::new(self.reader.clone())
    }

    fn transport(&self) -> Arc<dyn Transport> {
        self.transport.clone()
    }

    fn dead_endpoint(&self) -> String {
        format!("rdma://{}", free_address())
    }

    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        Some(Box::pin(async {
            let next = self.suspects.lock().await.next().await;
            next.expect("the server keeps its end")
        }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rdma_conforms() {
    transport(async |slots, block_bytes| {
        let (owner, owned) = arena(slots, block_bytes);
        let (reader, registered) = arena(slots, block_bytes);
        let (tell, suspects) = suspects();
        let served = RdmaServerConfig {
            suspects: Some(tell),
            ..RdmaServerConfig::new(credential("s"))
        };
        let server = RdmaServer::start(([127, 0, 0, 1], 0).into(), owned, served);
        Harness {
            transport: Arc::new(RdmaTransport::new(registered, config())),
            server: server.expect("an address to serve at"),
            suspects: tokio::sync::Mutex::new(suspects),
            owner,
            reader,
        }
    })
    .await;
}
