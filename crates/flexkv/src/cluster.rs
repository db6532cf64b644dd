//! Clusters to play workloads on: several nodes in this process, or a process for each.
//!
//! Either way an engine gets a [`KvCache`] per node. Knows nothing of the workloads.

mod counts;
mod processes;

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_block::{
    BlockKey, BlockLayout, ClusterSecret, LayerShape, Namespace, NamespaceId, RequestScope, Shard,
};
use flexkv_engine::EngineClient;
use flexkv_index::{NodeName, PolicyKind};
use flexkv_node::{Admission, NodeConfig};
use flexkv_ports::{HeapStore, KvCache, MetadataStore};
use flexkv_redis::RedisStore;
use flexkv_ssd::{SsdDir, SsdStats};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub use self::counts::Counts;
pub use self::processes::ProcessCluster;
use crate::config::{MemorySetting, RedisSetting, SsdSetting};
use crate::instance::{Instance, InstanceSpec};

/// How long the nodes of a cluster may take to find each other.
const FORMED_WITHIN: Duration = Duration::from_secs(60);
/// How often to look whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How often nodes look for each other: they all start now.
pub const MEMBERS_EVERY: Duration = Duration::from_millis(200);

/// A free port of this host.
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What the blocks of a synthetic workload belong to.
#[derive(Clone)]
pub struct Deployment {
    /// The cluster's name, of this run alone.
    pub cluster: String,
    /// The cluster's secret, of this run alone.
    pub secret: ClusterSecret,
    /// The namespace of its blocks.
    pub namespace: NamespaceId,
    /// The key before the first block of a prompt.
    pub root: BlockKey,
    /// Bytes of a block.
    pub block_bytes: usize,
}

impl Deployment {
    /// A deployment that meets no other, even on the same Redis.
    pub fn synthetic(block_tokens: u32, block_bytes: u64) -> Result<Self> {
        let mut rng = fastrand::Rng::new();
        let secret = ClusterSecret::derive(&rng.u128(..).to_le_bytes());
        let shape = LayerShape::Opaque { block_bytes };
        let layout = BlockLayout::uniform(block_tokens, 1, shape).context("bad block size")?;
        let namespace = Namespace {
            model: "synthetic".to_owned(),
            revision: String::new(),
            dtype: "bytes".to_owned(),
            layout,
            engine_layout: String::new(),
            tensor_parallel: 1,
            pipeline_parallel: 1,
        };
        Ok(Self {
            cluster: format!("synthetic-{:016x}", rng.u64(..)),
            namespace: namespace.id(&secret),
            root: namespace.root(&secret, Shard::default(), &RequestScope::default()),
            block_bytes: namespace.layout.block_bytes(),
            secret,
        })
    }
}

/// Where the nodes of a cluster find each other.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// Nowhere: every node is alone.
    Alone,
    /// In the memory of this process.
    Embedded,
    /// In Redis.
    Redis(RedisSetting),
}

/// What the nodes of a cluster keep on SSD.
#[derive(Clone, Debug)]
pub struct ClusterSsd {
    /// Blocks that each node keeps there.
    pub slots: u32,
    /// Where folders for the nodes are made, and removed afterwards; in that of temporary files if
    /// none.
    pub dir: Option<PathBuf>,
    /// Which blocks are written.
    pub admission: Admission,
}

/// A cluster to start.
pub struct ClusterSpec {
    /// How many nodes.
    pub nodes: usize,
    /// Blocks that each node keeps in memory.
    pub slots: u32,
    /// What nodes give up first.
    pub policy: PolicyKind,
    /// Where each node keeps more, if anywhere.
    pub ssd: Option<ClusterSsd>,
    /// Where they find each other.
    pub metadata: Metadata,
    /// What the blocks are.
    pub deployment: Deployment,
    /// How often nodes look for each other.
    pub members_interval: Duration,
}

impl ClusterSpec {
    /// The SSD of node `number`, in `folder`.
    fn ssd(&self, folder: Option<&TempDir>, number: usize) -> Option<SsdSetting> {
        let (ssd, folder) = (self.ssd.as_ref()?, folder?);
        let path = folder.path().join(format!("ssd-{number}"));
        let block_bytes = self.deployment.block_bytes;
        let dir = SsdDir::for_blocks(path, ssd.slots, block_bytes);
        Some(SsdSetting {
            admission: ssd.admission,
            policy: self.policy,
            ..SsdSetting::new(vec![dir])
        })
    }

    /// The folder of the nodes' SSDs, which goes with the cluster.
    fn ssd_folder(&self) -> Result<Option<TempDir>> {
        let Some(ssd) = &self.ssd else {
            return Ok(None);
        };
        let dir = ssd.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("flexkv-ssd-")
            .tempdir_in(&dir);
        let shown = dir.display();
        folder
            .map(Some)
            .with_context(|| format!("cannot make a folder in {shown}"))
    }

    /// Peers that every node sees once the cluster is formed.
    fn peers(&self) -> usize {
        match self.metadata {
            Metadata::Alone => 0,
            Metadata::Embedded | Metadata::Redis(_) => self.nodes - 1,
        }
    }
}

/// A cluster of nodes in this process.
pub struct LocalCluster {
    instances: Vec<Instance>,
    /// Folder of the nodes' SSDs.
    _ssds: Option<TempDir>,
    /// Folder of the engines' sockets.
    folder: TempDir,
}

impl LocalCluster {
    /// Starts the nodes and waits until all see each other.
    pub async fn start(spec: &ClusterSpec) -> Result<Self> {
        let (folder, ssds) = (folder()?, spec.ssd_folder()?);
        let embedded = Arc::new(HeapStore::default());
        let secret = fastrand::Rng::new().u128(..).to_le_bytes().to_vec();
        let mut instances = Vec::new();
        for number in 0..spec.nodes {
            let deployment = &spec.deployment;
            let store: Option<Arc<dyn MetadataStore>> = match &spec.metadata {
                Metadata::Alone => None,
                Metadata::Embedded => Some(embedded.clone()),
                Metadata::Redis(redis) => Some(Arc::new(connect(redis, deployment).await?)),
            };
            let instance = InstanceSpec {
                node: NodeConfig {
                    members_interval: spec.members_interval,
                    ..NodeConfig::new(node_name(number)?, deployment.namespace)
                },
                memory: MemorySetting {
                    slots: spec.slots,
                    huge_pages: false,
                    populate: false,
                    policy: spec.policy,
                },
                ssd: spec.ssd(ssds.as_ref(), number),
                block_bytes: deployment.block_bytes,
                store,
                secret: secret.clone(),
                shared_memory: true,
                tls: None,
                rdma: None,
                listen: ANY_PORT,
                advertise: None,
                socket: Some(socket(&folder, number)),
            };
            instances.push(Instance::start(instance, &metrics::NoopRecorder)?);
        }
        let formed = || instances.iter().all(|node| node.peers() >= spec.peers());
        let deadline = Instant::now() + FORMED_WITHIN;
        while !formed() {
            if Instant::now() >= deadline {
                bail!("the nodes did not find each other within {FORMED_WITHIN:?}");
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Self {
            instances,
            _ssds: ssds,
            folder,
        })
    }

    /// The nodes, as engines in this process see them.
    pub fn caches(&self) -> Vec<Arc<dyn KvCache>> {
        self.instances.iter().map(Instance::cache).collect()
    }

    /// What the SSDs of all nodes have done, if they have any.
    pub fn ssd_stats(&self) -> Option<SsdStats> {
        let all = self.instances.iter().filter_map(Instance::ssd_stats);
        all.reduce(SsdStats::plus)
    }

    /// Attaches an engine to node `number` over its socket, as an engine process does.
    pub async fn attach(&self, number: usize) -> Result<Arc<dyn KvCache>> {
        attach(socket(&self.folder, number)).await
    }

    /// Stops all nodes.
    pub async fn stop(self) {
        for instance in self.instances {
            instance.stop().await;
        }
    }
}

/// Connects to Redis, now.
pub async fn connect(redis: &RedisSetting, deployment: &Deployment) -> Result<RedisStore> {
    let config = redis.config(&deployment.cluster, deployment.namespace)?;
    let address = config.address().to_owned();
    RedisStore::connect(config)
        .await
        .with_context(|| format!("cannot use Redis at {address}"))
}

async fn attach(socket: PathBuf) -> Result<Arc<dyn KvCache>> {
    let shown = socket.display().to_string();
    let client = EngineClient::attach(socket)
        .await
        .with_context(|| format!("cannot attach to the node at {shown}"))?;
    Ok(Arc::new(client))
}

/// A private folder for sockets and files of a cluster.
fn folder() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("flexkv-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot make a temporary folder")
}

fn socket(folder: &TempDir, number: usize) -> PathBuf {
    folder.path().join(format!("node-{number}.sock"))
}

fn node_name(number: usize) -> Result<NodeName> {
    Ok(format!("node-{number}").parse()?)
}
