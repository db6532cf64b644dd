//! A cluster of node processes, each `flexkv node`, whose events are read from its standard output.
//!
//! A node process ends when its standard input closes, so none outlives this process, however it
//! ends. Knows nothing of what the nodes are used for.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flexkv_ports::KvCache;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use toml::{Table, Value};

use super::{ANY_PORT, ClusterSpec, Counts, FORMED_WITHIN, Metadata, attach, folder, socket};
use crate::config::{PASSWORD_VARIABLE, SsdSetting, admission_name};
use crate::events::Event;

/// How long a node process may take to leave the cluster before it is killed.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a failed node's log to show.
const LOG_LINES: usize = 20;

/// Node processes, killed when dropped.
pub struct ProcessCluster {
    nodes: Vec<NodeProcess>,
    /// How to start one.
    program: Vec<OsString>,
    /// Folder of the nodes' SSDs, which outlives each of them.
    ssds: Option<TempDir>,
    /// Folder of sockets, configurations and logs.
    folder: TempDir,
}

/// One node process.
struct NodeProcess {
    child: Child,
    log: PathBuf,
    state: watch::Receiver<State>,
}

/// What a node process has said of itself.
#[derive(Clone, Debug, Default)]
struct State {
    ready: bool,
    peers: usize,
    /// Where it serves its metrics.
    metrics: Option<String>,
    /// Its standard output is closed.
    ended: bool,
}

impl ProcessCluster {
    /// Starts a process of the `flexkv` command, which is `program` with its first arguments, for
    /// each node and waits until all see each other.
    pub async fn start(program: &[OsString], spec: &ClusterSpec) -> Result<Self> {
        let mut cluster = Self {
            nodes: Vec::new(),
            program: program.to_owned(),
            ssds: spec.ssd_folder()?,
            folder: folder()?,
        };
        cluster.launch(spec).await?;
        Ok(cluster)
    }

    /// Kills all nodes, as a power switch would, and starts them again: with empty memory, and with
    /// what lies on their SSDs.
    pub async fn restart(&mut self, spec: &ClusterSpec) -> Result<()> {
        for node in &mut self.nodes {
            node.child.kill().await.context("cannot kill a node")?;
        }
        self.nodes.clear();
        self.launch(spec).await
    }

    /// Starts a process for each node and waits until all see each other.
    async fn launch(&mut self, spec: &ClusterSpec) -> Result<()> {
        for number in 0..spec.nodes {
            let ssd = spec.ssd(self.ssds.as_ref(), number);
            let file = node_file(spec, ssd, &self.folder, number);
            let node = NodeProcess::spawn(&self.program, spec, &file, &self.folder, number)?;
            self.nodes.push(node);
        }
        let deadline = Instant::now() + FORMED_WITHIN;
        for node in &mut self.nodes {
            node.formed(spec.peers(), deadline).await?;
        }
        Ok(())
    }

    /// The processes' ids; `None` for one that has ended and was noticed.
    pub fn pids(&self) -> Vec<Option<u32>> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    /// What all nodes together have counted; those that do not answer are left out.
    pub async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in &self.nodes {
            let metrics = node.state.borrow().metrics.clone();
            if let Some(url) = metrics {
                counts.add(&url).await;
            }
        }
        counts
    }

    /// Attaches an engine to every node.
    pub async fn caches(&self) -> Result<Vec<Arc<dyn KvCache>>> {
        let mut caches = Vec::new();
        for number in 0..self.nodes.len() {
            caches.push(attach(socket(&self.folder, number)).await?);
        }
        Ok(caches)
    }

    /// Lets all nodes leave the cluster; kills those that do not.
    pub async fn stop(mut self) {
        for node in &mut self.nodes {
            drop(node.child.stdin.take());
        }
        let deadline = Instant::now() + STOPPED_WITHIN;
        for mut node in self.nodes {
            if timeout_at(deadline, node.child.wait()).await.is_err() {
                // Fails only if it has ended meanwhile.
                let _ = node.child.kill().await;
            }
        }
    }
}

impl NodeProcess {
    fn spawn(
        program: &[OsString],
        spec: &ClusterSpec,
        file: &Table,
        folder: &TempDir,
        number: usize,
    ) -> Result<Self> {
        let (program, first) = program.split_first().context("no program for nodes")?;
        let config = folder.path().join(format!("node-{number}.toml"));
        let log = folder.path().join(format!("node-{number}.log"));
        std::fs::write(&config, file.to_string())
            .with_context(|| format!("cannot write {}", config.display()))?;
        let log_file = std::fs::File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(first)
            .args(["node", "--json", "--until-stdin-closes", "--config"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true);
        if let Metadata::Redis(redis) = &spec.metadata
            && let Some(password) = &redis.password
        {
            command.env(PASSWORD_VARIABLE, password);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (said, state) = watch::channel(State::default());
        if let Some(output) = child.stdout.take() {
            tokio::spawn(listen(output, said));
        }
        Ok(Self { child, log, state })
    }

    /// Waits until the node is ready and sees `peers` others.
    async fn formed(&mut self, peers: usize, deadline: Instant) -> Result<()> {
        let formed = |state: &State| state.ended || (state.ready && state.peers >= peers);
        let waited = timeout_at(deadline, self.state.wait_for(formed))
            .await
            .map(|state| state.map_or_else(|_| State::default(), |state| state.clone()));
        let Ok(state) = waited else {
            bail!(
                "a node process did not find its {peers} peers within {FORMED_WITHIN:?}:\n{}",
                self.log_tail()
            );
        };
        if state.ended || !state.ready {
            // The process says why before it ends.
            let _ = timeout(STOPPED_WITHIN, self.child.wait()).await;
            bail!("a node process ended at once:\n{}", self.log_tail());
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// Reads events until the process closes its output. Lines that are none are passed over.
async fn listen(output: ChildStdout, said: watch::Sender<State>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Event::Ready { metrics, .. }) => said.send_modify(|state| {
                state.ready = true;
                state.metrics = metrics;
            }),
            Ok(Event::Peers { peers }) => said.send_modify(|state| state.peers = peers),
            Ok(Event::Stopped) | Err(_) => {}
        }
    }
    said.send_modify(|state| state.ended = true);
}

/// The configuration of node `number`.
fn node_file(
    spec: &ClusterSpec,
    ssd: Option<SsdSetting>,
    folder: &TempDir,
    number: usize,
) -> Table {
    let text = |text: &str| Value::String(text.to_owned());
    let section = |entries: Vec<(&str, Value)>| {
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value));
        Value::Table(entries.collect())
    };
    let deployment = &spec.deployment;
    let socket = socket(folder, number);
    let mut file = vec![
        ("name", Value::String(format!("node-{number}"))),
        ("cluster", text(&deployment.cluster)),
        ("secret", text(&deployment.cluster)),
        (
            "namespace",
            section(vec![
                ("id", text(&deployment.namespace.to_string())),
                ("block_bytes", Value::Integer(deployment.block_bytes as i64)),
            ]),
        ),
        (
            "memory",
            section(vec![
                ("slots", Value::Integer(spec.slots.into())),
                ("huge_pages", Value::Boolean(false)),
                ("populate", Value::Boolean(false)),
                ("policy", Value::String(spec.policy.to_string())),
            ]),
        ),
        (
            "network",
            section(vec![("listen", text(&ANY_PORT.to_string()))]),
        ),
        (
            "engine",
            section(vec![("socket", text(&socket.to_string_lossy()))]),
        ),
        (
            "timing",
            section(vec![(
                "members_interval",
                Value::String(format!("{} ms", spec.members_interval.as_millis())),
            )]),
        ),
        (
            "metrics",
            section(vec![("listen", text(&ANY_PORT.to_string()))]),
        ),
    ];
    if let Some(ssd) = ssd {
        let paths = ssd.dirs.iter().map(|dir| text(&dir.path.to_string_lossy()));
        let sizes = ssd
            .dirs
            .iter()
            .map(|dir| Value::String(dir.bytes.to_string()));
        file.push((
            "ssd",
            section(vec![
                ("directories", Value::Array(paths.collect())),
                ("sizes", Value::Array(sizes.collect())),
                ("admission", text(admission_name(ssd.admission))),
                ("policy", Value::String(ssd.policy.to_string())),
            ]),
        ));
    }
    if let Metadata::Redis(redis) = &spec.metadata {
        file.push(("redis", section(vec![("url", text(&redis.url))])));
    }
    file.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
