//! The servers of a Redis cluster: who has which slot, and the connections to them.
//!
//! Asks for the slots when it does not know, or when a server said that it has not what was asked
//! for, or did not answer. Knows nothing of commands other than that question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flexkv_ports::StoreError;
use fred::interfaces::ClientLike;
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use tokio::time::Instant;

use crate::config::RedisConfig;
use crate::error::{Failed, unavailable};
use crate::link::Link;
use crate::servers::Pair;

/// The slots are not asked for more often than this.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A cluster and our connections to it.
pub(crate) struct Cluster {
    config: RedisConfig,
    seeds: Vec<Server>,
    state: Mutex<State>,
    /// When slots were last asked for; held while they are.
    asking: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct State {
    /// Empty before they are known.
    slots: Slots,
    /// Someone else may have some of the slots by now.
    doubtful: bool,
    commands: BTreeMap<Server, Arc<Link>>,
    /// For each group of logs, where it was last waited for.
    reads: BTreeMap<u8, (Server, Arc<Link>)>,
}

/// First and last slot of a range, and who has it.
pub(crate) type Slots = Vec<(u16, u16, Server)>;

impl Cluster {
    /// A cluster of which `seeds` are known. Connects when it is needed.
    pub(crate) fn open(config: &RedisConfig, seeds: &[Server]) -> Self {
        Self {
            config: config.clone(),
            seeds: seeds.to_vec(),
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The connection for commands on keys in `slot`.
    pub(crate) async fn commands(&self, slot: u16) -> Result<Arc<Link>, StoreError> {
        let server = self.server(slot).await?;
        Ok(self.link(&server))
    }

    /// The connections for waiting for group `group` of logs, whose keys are in `slot`.
    pub(crate) async fn readers(&self, group: u8, slot: u16) -> Result<Pair, StoreError> {
        let server = self.server(slot).await?;
        let commands = self.link(&server);
        let mut state = self.state();
        let reads = match state.reads.get(&group) {
            Some((at, link)) if *at == server => link.clone(),
            _ => {
                let link = Arc::new(Link::open(self.config.target_in_cluster(&server)));
                state.reads.insert(group, (server, link.clone()));
                link
            }
        };
        Ok(Pair { commands, reads })
    }

    /// Another server may have the slots by now.
    pub(crate) fn doubt(&self) {
        self.state().doubtful = true;
    }

    /// The same, if `failed` is a reason to think so.
    pub(crate) fn doubt_after(&self, failed: &Failed) {
        if failed.elsewhere || matches!(failed.error, StoreError::Unavailable { .. }) {
            self.doubt();
        }
    }

    async fn server(&self, slot: u16) -> Result<Server, StoreError> {
        if self.state().doubtful || self.state().slots.is_empty() {
            self.ask().await?;
        }
        let found = find(&self.state().slots, slot);
        found.ok_or_else(|| {
            self.doubt();
            unavailable(self.config.address(), &format!("nobody has slot {slot}"))
        })
    }

    /// Asks all servers that we know for the slots; the first to answer is believed.
    async fn ask(&self) -> Result<(), StoreError> {
        let mut asked = self.asking.lock().await;
        let recently = asked.is_some_and(|at| at.elapsed() < ASK_EVERY);
        if recently && !self.state().slots.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<Server> = {
            let state = self.state();
            let known = state.slots.iter().map(|(_, _, server)| server);
            known.chain(&self.seeds).cloned().collect()
        };
        let answers = known.iter().map(|server| self.slots_of(server).boxed());
        let answer = select_ok(answers).await;
        *asked = Some(Instant::now());
        let (slots, _) = answer?;
        let mut state = self.state();
        let has = |server: &Server| slots.iter().any(|(_, _, with)| with == server);
        state.commands.retain(|server, _| has(server));
        state.reads.retain(|_, (server, _)| has(server));
        state.slots = slots;
        state.doubtful = false;
        Ok(())
    }

    async fn slots_of(&self, server: &Server) -> Result<Slots, StoreError> {
        let link = self.link(server);
        let command = CustomCommand::new_static("CLUSTER", ClusterHash::FirstKey, false);
        let answer =
            link.quick(|client| async move { client.custom(command, vec!["SLOTS"]).await });
        let slots = parse(answer.await?, server).unwrap_or_default();
        if slots.is_empty() {
            return Err(unavailable(
                link.address(),
                "it knows no slots of a cluster",
            ));
        }
        Ok(slots)
    }

    fn link(&self, server: &Server) -> Arc<Link> {
        let mut state = self.state();
        let open = || Arc::new(Link::open(self.config.target_in_cluster(server)));
        state
            .commands
            .entry(server.clone())
            .or_insert_with(open)
            .clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(slots: &Slots, slot: u16) -> Option<Server> {
    let mut ranges = slots.iter();
    let range = ranges.find(|(first, last, _)| (*first..=*last).contains(&slot));
    range.map(|(_, _, server)| server.clone())
}

/// The answer of CLUSTER SLOTS: for each range the first slot, the last, and who has it, its master
/// first. A master without an address is at that of `asked`.
pub(crate) fn parse(answer: Value, asked: &Server) -> Option<Slots> {
    let Value::Array(ranges) = answer else {
        return None;
    };
    let range = |range: Value| {
        let Value::Array(fields) = range else {
            return None;
        };
        let [first, last, Value::Array(master), ..] = &fields[..] else {
            return None;
        };
        let slot = |value: &Value| value.as_u64().and_then(|slot| u16::try_from(slot).ok());
        let host = match master.first()? {
            Value::Null => asked.host.to_string(),
            host => match host.as_string()? {
                empty if empty.is_empty() => asked.host.to_string(),
                host => host,
            },
        };
        let port = slot(master.get(1)?)?;
        Some((slot(first)?, slot(last)?, Server::new(host, port)))
    };
    ranges.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests;
