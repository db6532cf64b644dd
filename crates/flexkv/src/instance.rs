//! One node with everything around it: arena, servers and transports of peers, engine socket.
//!
//! The one place that wires a node; the node process, the demo and the replay all start nodes here.
//! Knows nothing of configuration files or of what the node is for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flexkv_block::BlockLayout;
use flexkv_engine::EngineServer;
use flexkv_handshake::{Credential, Refusals};
use flexkv_host::{
    HostConfig, HostTier, HostTransport, HostTransportConfig, ShareConfig, ShareServer,
};
use flexkv_node::{Node, NodeConfig, NodePorts};
use flexkv_ports::{KvCache, MetadataStore, StagedTier, SuspectSender, Transport, suspects};
use flexkv_rdma::RdmaCounts;
use flexkv_ssd::{SsdConfig, SsdStats, SsdTier};
use flexkv_tcp::{TcpServer, TcpTransport, Tls, TransportConfig};
use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, Unit};

use crate::config::{Advertise, MemorySetting, RdmaSetting, SsdSetting};
use crate::rdma::{Rdma, RdmaSpec};

/// What to start.
pub struct InstanceSpec {
    /// The node's settings; its endpoints are filled in here.
    pub node: NodeConfig,
    /// Its memory.
    pub memory: MemorySetting,
    /// Where more blocks lie, if anywhere.
    pub ssd: Option<SsdSetting>,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The metadata store; none for a node that is alone.
    pub store: Option<Arc<dyn MetadataStore>>,
    /// The secret that peers must know.
    pub secret: Vec<u8>,
    /// Whether nodes of this host may read each other's memory in place.
    pub shared_memory: bool,
    /// Certificates for connections between nodes, if those have TLS.
    pub tls: Option<Tls>,
    /// How peers may read that memory by RDMA, if they may.
    pub rdma: Option<RdmaSetting>,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// The address that peers are told; the one listened at if none.
    pub advertise: Option<Advertise>,
    /// Where engines attach; none if they are in this process.
    pub socket: Option<PathBuf>,
}

/// A running node and its servers. Dropping it ends them without leaving the cluster.
pub struct Instance {
    node: Arc<Node>,
    server: TcpServer,
    share: Option<ShareServer>,
    rdma: Option<Rdma>,
    engines: Option<EngineServer>,
    ssd: Option<Arc<SsdTier>>,
    metrics: ServerMetrics,
    endpoint: String,
}

impl Instance {
    /// Starts the node on the current runtime; its metrics go to `recorder`.
    pub fn start(spec: InstanceSpec, recorder: &dyn Recorder) -> Result<Self> {
        let mut rng = fastrand::Rng::new();
        let namespace = spec.node.namespace;
        let name = spec.node.name.to_string();
        let memory = spec.memory;
        let tier = HostTier::create(&HostConfig {
            slots: memory.slots,
            block_bytes: spec.block_bytes,
            namespace,
            arena: rng.u64(..),
            huge_pages: memory.huge_pages,
            populate: memory.populate,
        })
        .context("cannot make the arena that blocks lie in")?;
        let arena = tier.memory();
        let ssd_rules = spec.ssd.as_ref().map(|ssd| (ssd.admission, ssd.policy));
        let (admission, ssd_policy) = ssd_rules.unwrap_or_default();
        let ssd = spec.ssd.map(|ssd| {
            let config = SsdConfig {
                engine: ssd.engine,
                memory: vec![arena.clone()],
                rng: rng.fork(),
                ..SsdConfig::new(ssd.dirs, namespace, spec.block_bytes)
            };
            SsdTier::open(&config).map(Arc::new)
        });
        let ssd = ssd.transpose().context("cannot use the SSD")?;
        let credential = Credential::new(&spec.secret, &name);
        let block_bytes = u32::try_from(spec.block_bytes)
            .ok()
            .filter(|bytes| u64::from(*bytes) <= BlockLayout::MAX_BLOCK_BYTES)
            .with_context(|| format!("blocks of {} bytes are too large", spec.block_bytes))?;
        let (tell, reports) = suspects();
        let served = flexkv_tcp::ServerConfig {
            refusals: Refusals::register(recorder, &name, "tcp"),
            tls: spec.tls.clone(),
            suspects: Some(tell.clone()),
            ..flexkv_tcp::ServerConfig::new(namespace, credential.clone())
        };
        let server = TcpServer::start(spec.listen, Arc::new(tier.clone()), served)
            .with_context(|| format!("cannot listen for peers at {}", spec.listen))?;
        let endpoint = endpoint(&server, spec.advertise);
        let mut endpoints = Vec::new();
        let mut transports: Vec<Arc<dyn Transport>> = Vec::new();
        let mut share = None;
        if spec.shared_memory {
            let refusals = Refusals::register(recorder, &name, "shm");
            let config = HostTransportConfig::new(namespace, spec.block_bytes, credential.clone());
            match shared(&tier, config, refusals, tell.clone()) {
                Ok((server, transport)) => {
                    endpoints.push(server.endpoint().to_owned());
                    transports.push(Arc::new(transport));
                    share = Some(server);
                }
                Err(error) => {
                    tracing::warn!(%error, "memory is not shared with nodes of this host");
                }
            }
        }
        let mut rdma = None;
        if let Some(setting) = &spec.rdma {
            let wanted = RdmaSpec {
                setting,
                listen: spec.listen,
                advertise: spec.advertise,
                credential: credential.clone(),
                suspects: tell,
            };
            let (started, transport) = Rdma::start(&tier, wanted, &name, recorder)?;
            endpoints.push(started.endpoint().to_owned());
            transports.push(Arc::new(transport));
            rdma = Some(started);
        }
        let config = TransportConfig {
            tls: spec.tls,
            ..TransportConfig::new(namespace, block_bytes, credential)
        };
        endpoints.push(endpoint.clone());
        transports.push(Arc::new(TcpTransport::new(config)));
        let config = NodeConfig {
            endpoints,
            admission,
            policies: [memory.policy, ssd_policy],
            ..spec.node
        };
        let ports = NodePorts {
            tier: Arc::new(tier),
            staged: ssd.clone().map(|ssd| ssd as Arc<dyn StagedTier>),
            store: spec.store,
            transports,
            rng,
        };
        let node = Node::start(config, ports, recorder).context("cannot start the node")?;
        if ssd.is_some() {
            server.stage_with(node.clone());
            share
                .iter()
                .for_each(|share| share.stage_with(node.clone()));
        }
        node.heed(reports);
        let serve = |socket: PathBuf| {
            EngineServer::start(
                socket,
                node.clone(),
                arena,
                flexkv_engine::ServerConfig::default(),
            )
        };
        let engines = spec.socket.map(serve).transpose();
        let metrics = ServerMetrics::register(recorder, &name);
        Ok(Self {
            ssd,
            engines: engines.context("cannot serve engines")?,
            node,
            server,
            share,
            rdma,
            metrics,
            endpoint,
        })
    }

    /// The node, as an engine in this process sees it.
    pub fn cache(&self) -> Arc<dyn KvCache> {
        self.node.clone()
    }

    /// Live peers that the node knows.
    pub fn peers(&self) -> usize {
        self.node.peers()
    }

    /// What its SSD has done, if it has one.
    pub fn ssd_stats(&self) -> Option<SsdStats> {
        self.ssd.as_ref().map(|ssd| ssd.stats())
    }

    /// Brings the metrics up to what is true now; for whoever is about to read them.
    pub fn observer(&self) -> impl Fn() + Send + Sync + use<> {
        let (node, metrics) = (self.node.clone(), self.metrics.clone());
        let sessions = self.engines.as_ref().map(EngineServer::count_sessions);
        let served = self.server.count_served();
        let ssd = self.ssd.clone();
        let rdma = self.rdma.as_ref().map(Rdma::observer);
        move || {
            node.observe();
            let sessions = sessions.as_ref().map_or(0, |count| count());
            metrics.sessions.set(sessions as f64);
            let served = served();
            metrics.served_blocks.absolute(served.blocks);
            metrics.served_bytes.absolute(served.bytes);
            if let Some(ssd) = &ssd {
                let stats = ssd.stats();
                metrics.ssd_io_errors.absolute(stats.io_errors);
                metrics.ssd_lost_slots.absolute(stats.lost_slots);
                metrics.ssd_lost_dirs.absolute(stats.lost_dirs);
            }
            if let Some(observe) = &rdma {
                observe();
            }
        }
    }

    /// What peers are told to connect to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What was asked of the RDMA device, if there is one.
    pub fn rdma_counts(&self) -> Option<RdmaCounts> {
        self.rdma.as_ref().map(Rdma::counts)
    }

    /// Ends all sessions of engines, leaves the cluster and stops serving peers.
    pub async fn stop(self) {
        if let Some(engines) = self.engines {
            engines.shutdown().await;
        }
        self.node.stop().await;
        drop(self.share);
        drop(self.rdma);
        self.server.shutdown();
    }
}

/// What the servers around a node count, which is no affair of the node itself.
#[derive(Clone)]
struct ServerMetrics {
    sessions: Gauge,
    served_blocks: Counter,
    served_bytes: Counter,
    ssd_io_errors: Counter,
    ssd_lost_slots: Counter,
    ssd_lost_dirs: Counter,
}

impl ServerMetrics {
    fn register(recorder: &dyn Recorder, node: &str) -> Self {
        let metadata = Metadata::new(module_path!(), Level::INFO, None);
        let key = |name| Key::from_parts(name, vec![Label::new("node", node.to_owned())]);
        let counter = |name: &'static str, help: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), help.into());
            recorder.register_counter(&key(name), &metadata)
        };
        let sessions = "flexkv_sessions";
        let help = "Engine processes that are attached";
        recorder.describe_gauge(sessions.into(), Some(Unit::Count), help.into());
        Self {
            sessions: recorder.register_gauge(&key(sessions), &metadata),
            served_blocks: counter("flexkv_served_blocks_total", "Blocks sent to peers"),
            served_bytes: counter("flexkv_served_bytes_total", "Bytes of those"),
            ssd_io_errors: counter(
                "flexkv_ssd_io_errors_total",
                "Transfers to or from SSD that the system refused",
            ),
            ssd_lost_slots: counter(
                "flexkv_ssd_lost_slots_total",
                "Slots on SSD that are not used any more because they failed",
            ),
            ssd_lost_dirs: counter(
                "flexkv_ssd_lost_directories_total",
                "Directories that are not used any more because they failed",
            ),
        }
    }
}

/// Both halves of sharing memory with the nodes of this host.
fn shared(
    tier: &HostTier,
    config: HostTransportConfig,
    refusals: Refusals,
    tell: SuspectSender,
) -> std::io::Result<(ShareServer, HostTransport)> {
    let served = ShareConfig {
        refusals,
        suspects: Some(tell),
        ..ShareConfig::new(config.credential.clone())
    };
    let server = ShareServer::start(tier, served)?;
    Ok((server, HostTransport::new(config)?))
}

/// Where peers find the server.
fn endpoint(server: &TcpServer, advertise: Option<Advertise>) -> String {
    let listening = server.address();
    let at = match advertise {
        Some(Advertise { ip, port }) => {
            SocketAddr::new(ip, port.unwrap_or_else(|| listening.port()))
        }
        None => listening,
    };
    let (scheme, _) = server.endpoint().split_once("://").unwrap_or_default();
    format!("{scheme}://{at}")
}
