//! Which connection a command goes over: to the one server, or to that of a cluster which has the
//! command's keys. Knows nothing of what the commands say.

use std::future::Future;
use std::sync::Arc;

use flexkv_ports::StoreError;
use fred::clients::Client;
use fred::error::Error;

use crate::cluster::Cluster;
use crate::config::RedisConfig;
use crate::error::{Failed, unavailable};
use crate::keys::group;
use crate::link::Link;

/// How often a command is sent at most, as a cluster may say that another server has its keys.
const ATTEMPTS: usize = 3;

/// The connections of a store.
pub(crate) enum Servers {
    /// One server, or whichever the sentinels name.
    One(Pair),
    /// The servers of a cluster.
    Cluster(Box<Cluster>),
}

/// Two connections to one server: a command that waits must not hold up the others.
#[derive(Clone)]
pub(crate) struct Pair {
    /// For commands that are answered at once.
    pub(crate) commands: Arc<Link>,
    /// For commands that wait.
    pub(crate) reads: Arc<Link>,
}

impl Servers {
    /// Begins to connect.
    pub(crate) fn open(config: &RedisConfig) -> Self {
        match config.seeds() {
            Some(seeds) => Self::Cluster(Box::new(Cluster::open(config, seeds))),
            None => Self::One(Pair {
                commands: Arc::new(Link::open(config.target())),
                reads: Arc::new(Link::open(config.target())),
            }),
        }
    }

    /// Waits until the server that has `slot` is connected, or an attempt has failed.
    pub(crate) async fn first_outcome(&self, slot: u16) -> Result<(), StoreError> {
        match self {
            Self::One(Pair { commands, reads }) => {
                tokio::try_join!(commands.first_outcome(), reads.first_outcome()).map(drop)
            }
            Self::Cluster(cluster) => cluster.commands(slot).await?.first_outcome().await,
        }
    }

    /// Does a command whose keys are all in `slot`, and which the server answers at once.
    pub(crate) async fn quick<T, F>(
        &self,
        slot: u16,
        command: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let cluster = match self {
            Self::One(pair) => {
                let done = pair.commands.quick(&command).await;
                return done.map_err(|failed| needs_cluster(&pair.commands, failed));
            }
            Self::Cluster(cluster) => cluster,
        };
        let mut attempt = 1;
        loop {
            let link = cluster.commands(slot).await?;
            match link.quick(&command).await {
                Err(failed) if failed.elsewhere && attempt < ATTEMPTS => {
                    attempt += 1;
                    cluster.doubt();
                }
                Err(failed) => {
                    cluster.doubt_after(&failed);
                    return Err(failed.error);
                }
                Ok(done) => return Ok(done),
            }
        }
    }

    /// Which logs can be waited for in one command: those with the same number.
    pub(crate) fn group(&self, log: &str) -> u8 {
        match self {
            Self::One(_) => 0,
            Self::Cluster(_) => group(log),
        }
    }

    /// The connections for waiting for a group of logs, whose keys are in `slot`.
    pub(crate) async fn readers(&self, group: u8, slot: u16) -> Result<Pair, StoreError> {
        match self {
            Self::One(pair) => Ok(pair.clone()),
            Self::Cluster(cluster) => cluster.readers(group, slot).await,
        }
    }

    /// Takes note of a wait that ended badly.
    pub(crate) fn waited_in_vain(&self, readers: &Pair, failed: Failed) -> StoreError {
        match self {
            Self::One(_) => needs_cluster(&readers.reads, failed),
            Self::Cluster(cluster) => {
                cluster.doubt_after(&failed);
                failed.error
            }
        }
    }
}

/// Says so if the one server we were given turns out to be one of a cluster.
fn needs_cluster(link: &Link, failed: Failed) -> StoreError {
    if failed.elsewhere {
        let what = "the server is part of a cluster; begin the url with redis-cluster://";
        return unavailable(link.address(), what);
    }
    failed.error
}
