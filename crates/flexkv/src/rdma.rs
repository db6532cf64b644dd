//! RDMA around a node: its arena registered with a device, and both halves of the transport on it.
//!
//! A build without the feature `rdma` has no device. Knows nothing of verbs.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flexkv_handshake::{Credential, Refusals};
use flexkv_host::HostTier;
use flexkv_ports::SuspectSender;
use flexkv_rdma::{
    Nic, RdmaArena, RdmaConfig, RdmaCounters, RdmaCounts, RdmaServer, RdmaServerConfig,
    RdmaTransport,
};
use metrics::{Counter, Key, Label, Level, Metadata, Recorder, Unit};

use crate::config::{Advertise, RdmaSetting};

/// What is wanted.
pub(crate) struct RdmaSpec<'a> {
    pub(crate) setting: &'a RdmaSetting,
    /// Where peers connect by TCP: they greet at the same address.
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<Advertise>,
    pub(crate) credential: Credential,
    /// Where readers' reports of damaged blocks go.
    pub(crate) suspects: SuspectSender,
}

/// The owner's half, and the counters of both. Dropping it ends the service.
pub(crate) struct Rdma {
    server: RdmaServer,
    endpoint: String,
    counters: Arc<RdmaCounters>,
    metrics: RdmaMetrics,
}

impl Rdma {
    /// Registers the arena of `tier` and serves it; gives the reader's half with it.
    pub(crate) fn start(
        tier: &HostTier,
        spec: RdmaSpec<'_>,
        node: &str,
        recorder: &dyn Recorder,
    ) -> Result<(Self, RdmaTransport)> {
        let told = spec.advertise.map_or_else(|| spec.listen.ip(), |at| at.ip);
        let nic = nic(spec.setting.device.as_deref(), told)
            .context("cannot use RDMA (`flexkv devices` says more)")?;
        let arena = RdmaArena::register(nic, tier.memory(), *tier.layout())
            .context("cannot let an RDMA device reach the arena")?;
        let address = SocketAddr::new(spec.listen.ip(), spec.setting.port);
        let served = RdmaServerConfig {
            refusals: Refusals::register(recorder, node, "rdma"),
            suspects: Some(spec.suspects),
            ..RdmaServerConfig::new(spec.credential.clone())
        };
        let server = RdmaServer::start(address, arena.clone(), served)
            .with_context(|| format!("cannot listen for peers at {address}"))?;
        let rdma = Self {
            endpoint: format!("rdma://{}", SocketAddr::new(told, server.address().port())),
            counters: arena.counters().clone(),
            metrics: RdmaMetrics::register(recorder, node),
            server,
        };
        let transport = RdmaTransport::new(arena, RdmaConfig::new(spec.credential));
        tracing::info!(endpoint = rdma.endpoint, "peers may read by RDMA");
        Ok((rdma, transport))
    }

    /// What peers are told.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn counts(&self) -> RdmaCounts {
        self.counters.read()
    }

    /// Brings the metrics up to what is true now.
    pub(crate) fn observer(&self) -> impl Fn() + Send + Sync + use<> {
        let (counters, metrics) = (self.counters.clone(), self.metrics.clone());
        move || metrics.set(counters.read())
    }
}

impl std::fmt::Debug for Rdma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Rdma({}, {} readers)",
            self.endpoint,
            self.server.readers()
        )
    }
}

/// The device that fits best.
#[cfg(feature = "rdma")]
fn nic(device: Option<&str>, address: IpAddr) -> Result<Arc<dyn Nic>> {
    let at = (!address.is_unspecified()).then_some(address);
    Ok(Arc::new(flexkv_rdma::VerbsNic::open(device, at)?))
}

/// The device that fits best.
#[cfg(not(feature = "rdma"))]
fn nic(_: Option<&str>, _: IpAddr) -> Result<Arc<dyn Nic>> {
    anyhow::bail!("this flexkv is built without RDMA (cargo's feature `rdma`)")
}

/// What the device was asked for, as metrics.
#[derive(Clone)]
struct RdmaMetrics {
    blocks: Counter,
    work_requests: Counter,
    completions: Counter,
    registrations: Counter,
    connections: Counter,
}

impl RdmaMetrics {
    fn register(recorder: &dyn Recorder, node: &str) -> Self {
        let metadata = Metadata::new(module_path!(), Level::INFO, None);
        let counter = |name: &'static str, help: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), help.into());
            let labels = vec![Label::new("node", node.to_owned())];
            recorder.register_counter(&Key::from_parts(name, labels), &metadata)
        };
        Self {
            blocks: counter("flexkv_rdma_blocks_total", "Blocks asked of peers by RDMA"),
            work_requests: counter("flexkv_rdma_work_requests_total", "Reads posted for them"),
            completions: counter("flexkv_rdma_completions_total", "Completions of batches"),
            registrations: counter("flexkv_rdma_registrations_total", "Regions registered"),
            connections: counter("flexkv_rdma_connections_total", "Queue pairs connected"),
        }
    }

    fn set(&self, counts: RdmaCounts) {
        self.blocks.absolute(counts.blocks);
        self.work_requests.absolute(counts.work_requests);
        self.completions.absolute(counts.completions);
        self.registrations.absolute(counts.registrations);
        self.connections.absolute(counts.connections);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn each_count_is_a_metric_of_its_own() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = RdmaMetrics::register(&recorder, "n");
        metrics.set(RdmaCounts {
            blocks: 1,
            work_requests: 2,
            posts: 3,
            completions: 4,
            registrations: 5,
            connections: 6,
        });
        let text = recorder.handle().render();
        for line in [
            "flexkv_rdma_blocks_total{node=\"n\"} 1",
            "flexkv_rdma_work_requests_total{node=\"n\"} 2",
            "flexkv_rdma_completions_total{node=\"n\"} 4",
            "flexkv_rdma_registrations_total{node=\"n\"} 5",
            "flexkv_rdma_connections_total{node=\"n\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
