//! Where the server is, who we are to it, and how long we wait. Checked before anything connects.
//! Certificates are the affair of `tls`.

use std::fmt;
use std::time::Duration;

use flexkv_block::NamespaceId;
use fred::error::ErrorKind;
use fred::types::config::{Config, Server, ServerConfig};
use thiserror::Error;

use crate::link::Target;
use crate::tls::{self, TlsFiles};

/// How long a command may take unless the operator says otherwise.
const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest time-out.
const MAX_COMMAND_TIMEOUT: Duration = Duration::from_secs(3600);
/// The longest cluster name.
const MAX_CLUSTER_BYTES: usize = 64;

/// How to reach the server and which keys are ours.
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) server: Config,
    pub(crate) address: String,
    pub(crate) cluster: String,
    pub(crate) namespace: NamespaceId,
    pub(crate) command_timeout: Duration,
}

/// What is wrong with a configuration. Never shows the password.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The URL is not one of ours.
    #[error(
        "redis url: {reason}; expected redis://[[user]:password@]host[:port][/database], \
         redis-sentinel://host:port?sentinelServiceName=NAME or redis-cluster://host:port, \
         or the same with rediss for TLS"
    )]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The cluster's name cannot be part of a key.
    #[error("cluster name `{name}`: expected 1 to 64 of the characters A-Z a-z 0-9 _ -")]
    Cluster {
        /// The name given.
        name: String,
    },
    /// A file with a certificate or key cannot be used.
    #[error("redis tls: {file}: {reason}")]
    Tls {
        /// Which file, or what else certificates come from.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates are given for a connection without TLS.
    #[error("redis tls: certificates are given, but the url's scheme is not one with TLS (rediss)")]
    TlsNotUsed,
    /// Nothing could be answered in no time, and nobody waits for hours.
    #[error("command time-out: must be longer than zero and at most an hour")]
    CommandTimeout,
}

impl RedisConfig {
    /// The server at `url`, for the nodes of `cluster` that share `namespace`. Schemes: `redis`,
    /// `redis-sentinel` and `redis-cluster`, each with TLS as `rediss…`:
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`
    /// - `redis-sentinel://[[user]:password@]host:port[/database]?sentinelServiceName=NAME` with
    ///   `&node=host:port` for more sentinels, and `&sentinelUsername=` and `&sentinelPassword=` if
    ///   sentinels want credentials of their own
    /// - `redis-cluster://[[user]:password@]host:port` with `?node=host:port&…` for more seeds
    ///
    /// Special characters of user and password are percent-encoded. A TLS server must show a
    /// certificate of an authority that this system trusts; see [`Self::with_tls`].
    pub fn new(url: &str, cluster: &str, namespace: NamespaceId) -> Result<Self, ConfigError> {
        Self::with_tls(url, cluster, namespace, &TlsFiles::default())
    }

    /// Like [`Self::new`], with certificates of `files`.
    pub fn with_tls(
        url: &str,
        cluster: &str,
        namespace: NamespaceId,
        files: &TlsFiles,
    ) -> Result<Self, ConfigError> {
        let server = parse_url(url, files)?;
        if !is_cluster_name(cluster) {
            let name = cluster.to_owned();
            return Err(ConfigError::Cluster { name });
        }
        Ok(Self {
            address: address(&server.server),
            server,
            cluster: cluster.to_owned(),
            namespace,
            command_timeout: DEFAULT_COMMAND_TIMEOUT,
        })
    }

    /// Lets a command, or opening a connection, take at most `timeout` (up to an hour); 1 s if never
    /// called.
    pub fn command_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        if timeout.is_zero() || timeout > MAX_COMMAND_TIMEOUT {
            return Err(ConfigError::CommandTimeout);
        }
        self.command_timeout = timeout;
        Ok(self)
    }

    /// The server's `host:port`; those of all sentinels or seeds if there are several.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where connections lead if there is one server at a time.
    pub(crate) fn target(&self) -> Target {
        Target {
            config: self.server.clone(),
            address: self.address.clone(),
            timeout: self.command_timeout,
        }
    }

    /// Where connections to one server of a cluster lead.
    pub(crate) fn target_in_cluster(&self, server: &Server) -> Target {
        let mut target = self.target();
        target.address = server.to_string();
        target.config.server = ServerConfig::Centralized {
            server: server.clone(),
        };
        target
    }

    /// Servers of a cluster to ask for the others; none if it is no cluster.
    pub(crate) fn seeds(&self) -> Option<&[Server]> {
        match &self.server.server {
            ServerConfig::Clustered { hosts, .. } => Some(hosts),
            _ => None,
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("address", &self.address)
            .field("user", &self.server.username)
            .field("database", &self.server.database)
            .field("cluster", &self.cluster)
            .field("namespace", &self.namespace)
            .field("command_timeout", &self.command_timeout)
            .finish_non_exhaustive()
    }
}

fn parse_url(url: &str, files: &TlsFiles) -> Result<Config, ConfigError> {
    let refuse = |reason: String| ConfigError::Url { reason };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refuse("no scheme".to_owned()));
    };
    let plain = scheme.replacen("rediss", "redis", 1);
    let plain_url = format!("{plain}://{rest}");
    let parsed = match plain.as_str() {
        "redis" => Config::from_url_centralized(&plain_url),
        "redis-sentinel" => Config::from_url_sentinel(&plain_url),
        "redis-cluster" => Config::from_url_clustered(&plain_url),
        _ => return Err(refuse(format!("scheme `{scheme}` is not supported"))),
    };
    let mut config = parsed.map_err(|error| match error.kind() {
        ErrorKind::Parse => refuse("the database is not a number from 0 to 255".to_owned()),
        _ => refuse(error.details().to_owned()),
    })?;
    if config.username.is_some() && config.password.is_none() {
        return Err(refuse("a user without a password".to_owned()));
    }
    let in_path = rest.split(['?', '#']).next().unwrap_or_default();
    if config.server.is_clustered() && in_path.trim_end_matches('/').contains('/') {
        return Err(refuse("a cluster has no databases".to_owned()));
    }
    config.tls = match (plain != scheme, files.is_empty()) {
        (true, _) => Some(tls::connector(files)?.into()),
        (false, true) => None,
        (false, false) => return Err(ConfigError::TlsNotUsed),
    };
    Ok(config)
}

fn address(server: &ServerConfig) -> String {
    let hosts: Vec<_> = server.hosts().iter().map(ToString::to_string).collect();
    match server {
        ServerConfig::Sentinel { service_name, .. } => {
            format!("{} (sentinels of {service_name})", hosts.join(","))
        }
        _ => hosts.join(","),
    }
}

fn is_cluster_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=MAX_CLUSTER_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
