//! The suite that all transports run.

use std::sync::Arc;

use flexkv_host::HostTier;
use flexkv_ports::conformance::{TransportHarness, transport};
use flexkv_ports::{BlockTier, Transport};
use flexkv_rdma::{RdmaServer, RdmaTransport};

use crate::support::{arena, config, free_address, serve};

struct Harness {
    owner: HostTier,
    reader: HostTier,
    transport: Arc<RdmaTransport>,
    server: RdmaServer,
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rdma_conforms() {
    transport(async |slots, block_bytes| {
        let (owner, owned) = arena(slots, block_bytes);
        let (reader, registered) = arena(slots, block_bytes);
        Harness {
            transport: Arc::new(RdmaTransport::new(registered, config())),
            server: serve(owned),
            owner,
            reader,
        }
    })
    .await;
}
