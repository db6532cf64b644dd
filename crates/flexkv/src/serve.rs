//! The node process: starts a node as its configuration says, tells what happens, and leaves the
//! cluster when asked to end. Knows nothing of who started it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flexkv_node::NodeConfig;
use flexkv_ports::{MetadataStore, StoreError};
use flexkv_redis::RedisStore;
use metrics::NoopRecorder;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::NodeFile;
use crate::events::Event;
use crate::instance::{Instance, InstanceSpec};
use crate::scrape::{MetricsAddress, MetricsServer};

/// How often the number of peers is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long leaving the cluster may take.
const LEFT_WITHIN: Duration = Duration::from_secs(15);

/// Buckets of the histograms, all of which count seconds.
const SECONDS: [f64; 11] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0,
];

/// How a node process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Tell events as JSON.
    pub json: bool,
    /// End when standard input closes, as it does when a parent process ends.
    pub until_stdin_closes: bool,
}

/// Runs a node until a signal asks it to end; tells events on `out`.
pub async fn serve(file: NodeFile, options: ServeOptions, out: &mut dyn Write) -> Result<()> {
    let metrics = match file.metrics {
        Some(address) => Some(MetricsAddress::take(address).await?),
        None => None,
    };
    let store = store(&file).await?;
    let socket = file.socket.clone();
    let (instance, metrics) = start(spec(&file, store), metrics)?;
    let ready = Event::Ready {
        name: file.name.to_string(),
        pid: std::process::id(),
        endpoint: instance.endpoint().to_owned(),
        socket: socket.display().to_string(),
        metrics: metrics.as_ref().map(MetricsServer::url),
    };
    tell(out, options, &ready)?;
    let told = until_asked_to_end(&instance, options, out).await;
    if timeout(LEFT_WITHIN, instance.stop()).await.is_err() {
        tracing::warn!("could not leave the cluster within {LEFT_WITHIN:?}");
    }
    told?;
    tell(out, options, &Event::Stopped)
}

/// Starts the node. Without an address for its metrics nothing is recorded: samples that nobody
/// reads would pile up.
fn start(
    spec: InstanceSpec,
    metrics: Option<MetricsAddress>,
) -> Result<(Instance, Option<MetricsServer>)> {
    let Some(address) = metrics else {
        return Ok((Instance::start(spec, &NoopRecorder)?, None));
    };
    let recorder = PrometheusBuilder::new()
        .set_buckets(&SECONDS)
        .context("cannot set up metrics")?
        .build_recorder();
    let instance = Instance::start(spec, &recorder)?;
    let server = address.serve(recorder.handle(), instance.observer());
    Ok((instance, Some(server)))
}

/// Tells changes until a signal comes or, if wanted, standard input closes.
async fn until_asked_to_end(
    instance: &Instance,
    options: ServeOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let orphaned = closed_stdin(options.until_stdin_closes);
    tokio::pin!(orphaned);
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut peers = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = &mut orphaned => return Ok(()),
            _ = look.tick() => {}
        }
        if instance.peers() != peers {
            peers = instance.peers();
            tell(out, options, &Event::Peers { peers })?;
        }
    }
}

/// Ends when standard input does; never if that is not `wanted`.
async fn closed_stdin(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let mut input = tokio::io::stdin();
    let mut bytes = [0; 64];
    while matches!(input.read(&mut bytes).await, Ok(1..)) {}
}

/// The node's metadata store. A server that refuses us needs an operator, so that is an error; one
/// that is not there now will be found when it comes.
async fn store(file: &NodeFile) -> Result<Option<Arc<dyn MetadataStore>>> {
    let Some(redis) = &file.redis else {
        return Ok(None);
    };
    let config = redis.config(&file.cluster, file.namespace.id)?;
    let address = config.address().to_owned();
    match RedisStore::connect(config.clone()).await {
        Ok(store) => Ok(Some(Arc::new(store))),
        Err(error @ StoreError::Unavailable { .. }) => {
            tracing::warn!(%error, "Redis at {address} is not there; the node is alone until it is");
            Ok(Some(Arc::new(RedisStore::connect_lazily(config))))
        }
        Err(error) => Err(error).with_context(|| format!("cannot use Redis at {address}")),
    }
}

fn spec(file: &NodeFile, store: Option<Arc<dyn MetadataStore>>) -> InstanceSpec {
    let defaults = NodeConfig::new(file.name.clone(), file.namespace.id);
    let timing = file.timing;
    InstanceSpec {
        node: NodeConfig {
            locality: file.locality.clone(),
            lease: timing.lease.unwrap_or(defaults.lease),
            batch_interval: timing.batch_interval.unwrap_or(defaults.batch_interval),
            batch_interval_max: timing
                .batch_interval_max
                .unwrap_or(defaults.batch_interval_max),
            members_interval: timing.members_interval.unwrap_or(defaults.members_interval),
            fetch_timeout: timing.fetch_timeout.unwrap_or(defaults.fetch_timeout),
            store_bytes_per_second: timing
                .redis_bytes_per_second
                .unwrap_or(defaults.store_bytes_per_second),
            ..defaults
        },
        memory: file.memory,
        ssd: file.ssd.clone(),
        block_bytes: file.namespace.block_bytes,
        store,
        secret: file.secret.clone(),
        shared_memory: file.shared_memory,
        tls: file.tls.clone(),
        rdma: file.rdma.clone(),
        listen: file.listen,
        advertise: file.advertise,
        socket: Some(file.socket.clone()),
    }
}

fn tell(out: &mut dyn Write, options: ServeOptions, event: &Event) -> Result<()> {
    if options.json {
        serde_json::to_writer(&mut *out, event)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", event.describe())?;
    }
    Ok(out.flush()?)
}
