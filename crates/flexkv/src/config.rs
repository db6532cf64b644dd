//! The configuration of a node process: one TOML file, checked as a whole before anything starts.
//!
//! Every problem names its key and says what is wrong; unknown keys are refused. Knows nothing of
//! how the settings are used.

mod certificates;
mod fields;
mod namespace;
mod ssd;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flexkv_block::{ClusterSecret, NamespaceId};
use flexkv_index::{NodeName, PolicyKind};
use flexkv_redis::{Identity, RedisConfig, TlsFiles};
use flexkv_tcp::Tls;
use toml::Table;

use self::fields::{Fields, Problem};
pub use self::namespace::NamespaceSetting;
pub use self::ssd::{SsdSetting, admission_name, parse_admission};
use crate::units::{parse_bytes, parse_duration};

/// A commented configuration file, as `flexkv node --example-config` prints it.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// Environment variable with the password of Redis.
pub const PASSWORD_VARIABLE: &str = "FLEXKV_REDIS_PASSWORD";

/// What a node process is told.
#[derive(Clone, Debug)]
pub struct NodeFile {
    /// The node's name.
    pub name: NodeName,
    /// Nodes of one cluster find each other.
    pub cluster: String,
    /// Where the node is, for choosing near peers.
    pub locality: String,
    /// Which blocks it keeps.
    pub namespace: NamespaceSetting,
    /// The memory it keeps them in.
    pub memory: MemorySetting,
    /// Where it keeps more of them, if anywhere.
    pub ssd: Option<SsdSetting>,
    /// The secret that all nodes and engines of the cluster share.
    pub secret: Vec<u8>,
    /// Redis, if the node is not alone.
    pub redis: Option<RedisSetting>,
    /// Whether nodes of this host may read each other's memory in place.
    pub shared_memory: bool,
    /// Certificates for connections between nodes, if those have TLS.
    pub tls: Option<Tls>,
    /// How peers read by RDMA, if they do.
    pub rdma: Option<RdmaSetting>,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// The address that peers are told; the listening one if none.
    pub advertise: Option<Advertise>,
    /// Where engines attach.
    pub socket: PathBuf,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Times other than the defaults.
    pub timing: Timing,
}

/// How much memory, and how it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySetting {
    /// Blocks that fit.
    pub slots: u32,
    /// Ask for huge pages.
    pub huge_pages: bool,
    /// Take all of it at the start.
    pub populate: bool,
    /// What it gives up first.
    pub policy: PolicyKind,
}

/// How peers read a node's memory by RDMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaSetting {
    /// The TCP port at which they greet the node; 0 for a free one.
    pub port: u16,
    /// The device, if it is not to be chosen.
    pub device: Option<String>,
}

/// The address that peers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The host's address.
    pub ip: IpAddr,
    /// The port, if it is not the one listened at.
    pub port: Option<u16>,
}

/// How to reach Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSetting {
    /// `redis://[user@]host:port[/database]`, or one of the other forms that `RedisConfig` takes.
    pub url: String,
    /// The password, if one was given outside of the URL.
    pub password: Option<String>,
    /// Certificates, if it has TLS.
    pub tls: TlsFiles,
}

impl fmt::Debug for RedisSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisSetting({})", without_password(&self.url))
    }
}

impl RedisSetting {
    /// The setting as the adapter takes it, for nodes of `cluster` that share `namespace`.
    pub fn config(
        &self,
        cluster: &str,
        namespace: NamespaceId,
    ) -> Result<RedisConfig, flexkv_redis::ConfigError> {
        let url = match &self.password {
            Some(password) => with_password(&self.url, password),
            None => self.url.clone(),
        };
        RedisConfig::with_tls(&url, cluster, namespace, &self.tls)
    }
}

/// Times and rates that have defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// How long Redis keeps the node's lease.
    pub lease: Option<Duration>,
    /// How long changes are gathered before they are published.
    pub batch_interval: Option<Duration>,
    /// How long they are gathered at most.
    pub batch_interval_max: Option<Duration>,
    /// How often the node looks for new and gone peers.
    pub members_interval: Option<Duration>,
    /// Longest wait for one peer.
    pub fetch_timeout: Option<Duration>,
    /// What all nodes together may exchange with Redis in a second, in bytes.
    pub redis_bytes_per_second: Option<u64>,
}

/// Why a configuration was refused: every problem, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    lines: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl NodeFile {
    /// Reads the configuration at `path`. `password` is that of the environment.
    pub fn read(path: &Path, password: Option<String>) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|reason| ConfigError {
            lines: vec![format!("cannot read the configuration {file}: {reason}")],
        })?;
        Self::parse(&text, &file, password)
    }

    /// Reads the configuration `text`; `file` is its name in errors.
    pub fn parse(text: &str, file: &str, password: Option<String>) -> Result<Self, ConfigError> {
        let document: Table = text.parse().map_err(|error: toml::de::Error| ConfigError {
            lines: vec![format!("{file}: {}", error.to_string().trim_end())],
        })?;
        let mut fields = Fields::new(&document);
        let read = read(&mut fields, password);
        let problems = fields.finish();
        match read {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(ConfigError {
                lines: problems
                    .into_iter()
                    .map(|Problem { key, reason }| format!("{file}: `{key}` {reason}"))
                    .collect(),
            }),
        }
    }
}

/// Reads every key, whatever is wrong with the others.
fn read(fields: &mut Fields<'_>, password: Option<String>) -> Option<NodeFile> {
    let name = fields.required_text("name", "what this node is called in logs and metrics");
    let name = name.and_then(|text| {
        let parsed = text.parse::<NodeName>();
        parsed
            .map_err(|error| fields.refuse("name", error.to_string()))
            .ok()
    });
    let cluster = fields.required_text("cluster", "nodes of one cluster find each other by it");
    let locality = fields.text("locality").unwrap_or_default();
    let secret = secret(fields);
    let any_secret = ClusterSecret::derive(secret.as_deref().unwrap_or_default());
    let namespace = namespace::read(fields, &any_secret);
    let memory = memory(fields, namespace.map(|namespace| namespace.block_bytes));
    let ssd = ssd::read(fields);
    let redis = redis(fields, password);
    if let (Some(redis), Some(cluster), Some(namespace)) = (&redis, cluster, namespace)
        && let Err(error) = redis.config(cluster, namespace.id)
    {
        let key = match error {
            flexkv_redis::ConfigError::Cluster { .. } => "cluster",
            flexkv_redis::ConfigError::Tls { .. } => "redis.ca_file",
            _ => "redis.url",
        };
        fields.refuse(key, error.to_string());
    }
    let listen = fields.parsed("network.listen", address);
    if !fields.has("network.listen") {
        fields.refuse(
            "network.listen",
            "is missing: where peers connect, such as `0.0.0.0:7400`",
        );
    }
    let advertise = fields.parsed("network.advertise", advertise);
    let shared_memory = fields.flag("network.shared_memory").unwrap_or(true);
    let tls = certificates::read(fields);
    let rdma = rdma(fields);
    if tls.is_some() && rdma.is_some() {
        let reason = "cannot stand beside TLS: nothing encrypts what RDMA carries";
        fields.refuse("network.rdma_port", reason);
    }
    let socket = fields.required_text("engine.socket", "the path at which engines attach");
    let metrics = fields.parsed("metrics.listen", address);
    let timing = Timing {
        lease: fields.parsed("timing.lease", parse_duration),
        batch_interval: fields.parsed("timing.batch_interval", parse_duration),
        batch_interval_max: fields.parsed("timing.batch_interval_max", parse_duration),
        members_interval: fields.parsed("timing.members_interval", parse_duration),
        fetch_timeout: fields.parsed("timing.fetch_timeout", parse_duration),
        redis_bytes_per_second: fields.parsed("redis.bytes_per_second", parse_bytes),
    };
    if listen.is_some_and(|at| at.ip().is_unspecified()) && advertise.is_none() && redis.is_some() {
        fields.refuse(
            "network.advertise",
            "is missing: `network.listen` names every interface, so peers must be told which address to use",
        );
    }
    Some(NodeFile {
        name: name?,
        cluster: cluster?.to_owned(),
        locality: locality.to_owned(),
        namespace: namespace?,
        memory: memory?,
        ssd,
        secret: secret?,
        redis,
        shared_memory,
        tls,
        rdma,
        listen: listen?,
        advertise,
        socket: PathBuf::from(socket?),
        metrics,
        timing,
    })
}

fn rdma(fields: &mut Fields<'_>) -> Option<RdmaSetting> {
    let port = fields.number("network.rdma_port", 0..=u64::from(u16::MAX));
    let device = fields.text("network.rdma_device").map(str::to_owned);
    if device.is_some() && port.is_none() {
        let reason =
            "is of no use without `network.rdma_port`: where peers that read by RDMA greet";
        fields.refuse("network.rdma_device", reason);
    }
    if port.is_some() && !cfg!(feature = "rdma") {
        let reason = "cannot be used: this flexkv is built without RDMA (cargo's feature `rdma`)";
        fields.refuse("network.rdma_port", reason);
    }
    let port = u16::try_from(port?).ok()?;
    Some(RdmaSetting { port, device })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is not an address: write it as `127.0.0.1:7400` or `[::1]:7400`")
    })
}

fn advertise(text: &str) -> Result<Advertise, String> {
    if let Ok(ip) = text.parse() {
        return Ok(Advertise { ip, port: None });
    }
    let at = address(text)?;
    let port = (at.port() != 0).then_some(at.port());
    Ok(Advertise { ip: at.ip(), port })
}

/// The first line of the file at `path`.
fn first_line(path: &str) -> Result<String, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(format!("{path} begins with an empty line")),
    }
}

fn secret(fields: &mut Fields<'_>) -> Option<Vec<u8>> {
    let from_file = fields.parsed("secret_file", first_line);
    let text = fields.text("secret").map(str::to_owned);
    match (fields.has("secret"), fields.has("secret_file")) {
        (true, true) => {
            fields.refuse(
                "secret",
                "cannot stand beside `secret_file`: give one of them",
            );
            None
        }
        (false, false) => {
            fields.refuse(
                "secret_file",
                "is missing: who knows the cluster's secret may share its cache",
            );
            None
        }
        _ if text.as_deref() == Some("") => {
            fields.refuse("secret", "is empty");
            None
        }
        _ => text.or(from_file).map(String::into_bytes),
    }
}

fn memory(fields: &mut Fields<'_>, block_bytes: Option<usize>) -> Option<MemorySetting> {
    let huge_pages = fields.flag("memory.huge_pages").unwrap_or(true);
    let populate = fields.flag("memory.populate").unwrap_or(true);
    let policy = fields
        .parsed("memory.policy", str::parse)
        .unwrap_or_default();
    slots(fields, block_bytes).map(|slots| MemorySetting {
        policy,
        slots,
        huge_pages,
        populate,
    })
}

/// Slots of the memory, given as such or as a size.
fn slots(fields: &mut Fields<'_>, block_bytes: Option<usize>) -> Option<u32> {
    let slots = fields.number("memory.slots", 1..=u64::from(u32::MAX));
    let size = fields.parsed("memory.size", parse_bytes);
    match (fields.has("memory.slots"), fields.has("memory.size")) {
        (true, true) => {
            fields.refuse(
                "memory.slots",
                "cannot stand beside `memory.size`: give one of them",
            );
            None
        }
        (false, false) => {
            fields.refuse(
                "memory.size",
                "is missing: how much memory to keep blocks in, such as `8 GiB`",
            );
            None
        }
        (true, false) => slots.map(|slots| slots as u32),
        (false, true) => {
            let (size, block_bytes) = (size?, block_bytes?);
            let slots = size / block_bytes as u64;
            match u32::try_from(slots) {
                Ok(0) => fields.refuse(
                    "memory.size",
                    format!("holds no block of {block_bytes} bytes"),
                ),
                Ok(slots) => return Some(slots),
                Err(_) => fields.refuse(
                    "memory.size",
                    format!("holds {slots} blocks, and a node at most {}", u32::MAX),
                ),
            }
            None
        }
    }
}

fn redis(fields: &mut Fields<'_>, password: Option<String>) -> Option<RedisSetting> {
    let from_file = fields.parsed("redis.password_file", first_line);
    let url = fields.text("redis.url").map(str::to_owned);
    let tls = tls(fields);
    let others = [
        "redis.password_file",
        "redis.ca_file",
        "redis.certificate_file",
    ];
    if url.is_none()
        && let Some(other) = others.into_iter().find(|key| fields.has(key))
    {
        fields.refuse("redis.url", format!("is missing beside `{other}`"));
    }
    Some(RedisSetting {
        url: url?,
        password: from_file.or(password),
        tls,
    })
}

fn tls(fields: &mut Fields<'_>) -> TlsFiles {
    let mut path = |key| fields.text(key).map(PathBuf::from);
    let authorities = path("redis.ca_file");
    let certificate = path("redis.certificate_file");
    let key = path("redis.key_file");
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            fields.refuse(
                "redis.key_file",
                "is missing beside `redis.certificate_file`",
            );
            None
        }
        (None, Some(_)) => {
            fields.refuse(
                "redis.certificate_file",
                "is missing beside `redis.key_file`",
            );
            None
        }
    };
    TlsFiles {
        authorities,
        identity,
    }
}

/// `url` with `password` in place of any that it has, percent-encoded.
fn with_password(url: &str, password: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let user = user.split(':').next().unwrap_or_default();
    let mut out = format!("{scheme}://{user}:");
    for byte in password.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out + "@" + host
}

/// `url` without its password, to be shown.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
