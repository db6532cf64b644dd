//! Where the server is, who we are to it, and how long we wait. Checked before anything connects.

use std::fmt;
use std::time::Duration;

use flexkv_block::NamespaceId;
use fred::error::ErrorKind;
use fred::types::config::{Config, ServerConfig};
use thiserror::Error;

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
    #[error("redis url: {reason}; expected redis://[[user]:password@]host[:port][/database]")]
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
    /// Nothing could be answered in no time, and nobody waits for hours.
    #[error("command time-out: must be longer than zero and at most an hour")]
    CommandTimeout,
}

impl RedisConfig {
    /// The server at `url` (`redis://[[user]:password@]host[:port][/database]`, special characters
    /// of user and password percent-encoded), for the nodes of `cluster` that share `namespace`.
    pub fn new(url: &str, cluster: &str, namespace: NamespaceId) -> Result<Self, ConfigError> {
        let server = parse_url(url)?;
        let address = address(&server);
        if !is_cluster_name(cluster) {
            let name = cluster.to_owned();
            return Err(ConfigError::Cluster { name });
        }
        Ok(Self {
            server,
            address,
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

    /// The server's `host:port`.
    pub fn address(&self) -> &str {
        &self.address
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

fn parse_url(url: &str) -> Result<Config, ConfigError> {
    let refuse = |reason: String| ConfigError::Url { reason };
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        "redis" => {}
        "" => return Err(refuse("no scheme".to_owned())),
        "rediss" => return Err(refuse("TLS (rediss) is not supported".to_owned())),
        other => return Err(refuse(format!("scheme `{other}` is not supported"))),
    }
    let config = Config::from_url_centralized(url).map_err(|error| match error.kind() {
        ErrorKind::Parse => refuse("the database is not a number from 0 to 255".to_owned()),
        _ => refuse(error.details().to_owned()),
    })?;
    if config.username.is_some() && config.password.is_none() {
        return Err(refuse("a user without a password".to_owned()));
    }
    Ok(config)
}

fn address(config: &Config) -> String {
    match &config.server {
        ServerConfig::Centralized { server } => format!("{}:{}", server.host, server.port),
        other => format!("{:?}", other.hosts()),
    }
}

fn is_cluster_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=MAX_CLUSTER_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
