//! Who has a lease. Whatever changes is counted, so a list costs what has changed since the one
//! before, and a look at a few leases in turn: each node looks at others, so one that went silent is
//! soon found by someone, who tells all. Knows nothing of what records say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{Member, StoreError};
use fred::clients::Client;
use fred::interfaces::{KeysInterface, LuaInterface};
use fred::types::Value;

use crate::error::unavailable;
use crate::keys::Keys;
use crate::reply::{self, News};
use crate::scripts;
use crate::servers::Servers;
use crate::store::milliseconds;

/// Leases that one list looks at, whether they have changed or not.
const LOOKED_AT: usize = 16;
/// What is known of members outlives every lease by far, but not a cluster that is gone.
const MEMBERS_TTL: Duration = Duration::from_secs(24 * 3600);

/// What scripts that change who is a member need first, if a lease lasts for `ttl`.
pub(crate) fn args(ttl: Duration) -> Vec<Value> {
    let random = format!("{:016x}", fastrand::Rng::new().u64(..));
    vec![random.into(), milliseconds(ttl.max(MEMBERS_TTL)).into()]
}

/// What was known when members were last listed.
#[derive(Default)]
pub(crate) struct Members {
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    /// The last change that is known; none if there is no count.
    changes: Option<Changes>,
    /// Records by the key of their lease.
    leases: BTreeMap<String, Bytes>,
    /// The lease that was looked at last.
    looked_at: String,
}

/// The count of changes. Another life of it begins whenever it was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changes {
    life: String,
    count: u64,
}

impl Changes {
    fn parse(text: Option<Bytes>) -> Option<Self> {
        let text = text?;
        let (life, count) = std::str::from_utf8(&text).ok()?.split_once('.')?;
        Some(Self {
            life: life.to_owned(),
            count: count.parse().ok()?,
        })
    }

    /// Whether a list of what has changed since `known` can be had.
    fn goes_on_from(&self, known: &Self) -> bool {
        self.life == known.life && self.count >= known.count
    }
}

impl Known {
    /// The leases whose turn it is.
    fn turn(&mut self) -> Vec<String> {
        let after = (
            Bound::Excluded(self.looked_at.as_str()),
            Bound::<&str>::Unbounded,
        );
        let later = self.leases.range::<str, _>(after).map(|(key, _)| key);
        let turn: Vec<String> = later
            .chain(self.leases.keys())
            .take(LOOKED_AT.min(self.leases.len()))
            .cloned()
            .collect();
        if let Some(last) = turn.last() {
            self.looked_at.clone_from(last);
        }
        turn
    }

    /// Takes what was found under keys of leases; says which of them are gone.
    fn note(&mut self, found: Vec<(String, Option<Bytes>)>) -> Vec<String> {
        let mut gone = Vec::new();
        for (key, record) in found {
            match record {
                Some(record) => {
                    self.leases.insert(key, record);
                }
                None => {
                    self.leases.remove(&key);
                    gone.push(key);
                }
            }
        }
        gone
    }
}

impl Members {
    /// All who have a lease.
    pub(crate) async fn list(
        &self,
        servers: &Servers,
        keys: &Keys,
        address: &str,
    ) -> Result<Vec<Member>, StoreError> {
        let server = Server {
            servers,
            keys,
            address,
        };
        let mut known = self.known().clone();
        if known.looked_at.is_empty() {
            // So that not all nodes look at the same ones.
            let place = fastrand::Rng::new().usize(..known.leases.len().max(1));
            let key = known.leases.keys().nth(place);
            known.looked_at = key.cloned().unwrap_or_default();
        }
        let turn = known.turn();
        let (changes, found) = server.look(&turn).await?;
        let mut gone = known.note(found);
        if changes.is_none() || changes != known.changes {
            gone.extend(server.catch_up(&mut known).await?);
        }
        if !gone.is_empty() {
            server.prune(gone).await?;
        }
        let member = |(key, record): (&String, &Bytes)| {
            let name = keys.lease_name(key)?.to_owned();
            let record = record.clone();
            Some(Member { name, record })
        };
        let members = known.leases.iter().filter_map(member).collect();
        *self.known() = known;
        Ok(members)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server that has the leases.
struct Server<'a> {
    servers: &'a Servers,
    keys: &'a Keys,
    address: &'a str,
}

impl Server<'_> {
    /// The count of changes, and the records of `leases`.
    async fn look(
        &self,
        leases: &[String],
    ) -> Result<(Option<Changes>, Vec<(String, Option<Bytes>)>), StoreError> {
        let mut keys = vec![self.keys.changes()];
        keys.extend_from_slice(leases);
        let mget = |client: Client| {
            let keys = keys.clone();
            async move { client.mget(keys).await }
        };
        let reply: Value = self.servers.quick(self.keys.lease_slot(), mget).await?;
        let mut values = reply::values(reply, keys.len()).map_err(|_| self.malformed("MGET"))?;
        let records = values.split_off(1);
        let changes = Changes::parse(values.pop().flatten());
        Ok((changes, leases.iter().cloned().zip(records).collect()))
    }

    /// Brings `known` up to what is kept now; says which members turned out to be gone.
    async fn catch_up(&self, known: &mut Known) -> Result<Vec<String>, StoreError> {
        let before = known.changes.take();
        let mut news = self.news(before.as_ref().map(|known| known.count)).await?;
        let now = Changes::parse(news.changes.clone());
        let both = before.as_ref().zip(now);
        if !both.is_some_and(|(before, now)| now.goes_on_from(before)) {
            if before.is_some() {
                news = self.news(None).await?;
            }
            let members: BTreeSet<&String> = news.changed.iter().collect();
            known.leases.retain(|key, _| members.contains(key));
        }
        known.changes = Changes::parse(news.changes);
        let changed = news.changed.len();
        let leases = [news.changed, news.gone].concat();
        let (_, found) = self.look(&leases).await?;
        let gone = known.note(found);
        let members: BTreeSet<&String> = leases[..changed].iter().collect();
        let gone = gone.into_iter().filter(|key| members.contains(key));
        Ok(gone.collect())
    }

    /// What has changed since the change of number `since`, or all there is.
    async fn news(&self, since: Option<u64>) -> Result<News, StoreError> {
        let keys = vec![self.keys.members(), self.keys.changes(), self.keys.gone()];
        let since = since.map_or_else(|| "-inf".to_owned(), |since| since.to_string());
        let eval = |client: Client| {
            let (keys, since) = (keys.clone(), since.clone());
            async move { client.eval(scripts::NEWS, keys, vec![since]).await }
        };
        let reply: Value = self.servers.quick(self.keys.lease_slot(), eval).await?;
        reply::news(reply).map_err(|_| self.malformed("EVAL (news)"))
    }

    async fn prune(&self, gone: Vec<String>) -> Result<(), StoreError> {
        let mut keys = vec![self.keys.members(), self.keys.changes(), self.keys.gone()];
        keys.extend(gone);
        let eval = |client: Client| {
            let keys = keys.clone();
            async move {
                let done = client.eval(scripts::PRUNE, keys, args(Duration::ZERO));
                done.await.map(|_: Value| ())
            }
        };
        let pruned = self.servers.quick(self.keys.lease_slot(), eval).await;
        match pruned {
            // Listing goes on where nothing may be written.
            Err(StoreError::Full { .. } | StoreError::Denied { .. }) => Ok(()),
            pruned => pruned,
        }
    }

    fn malformed(&self, command: &str) -> StoreError {
        let what = format!("the answer to {command} makes no sense");
        unavailable(self.address, &what)
    }
}
