//! Who has a lease. The names are remembered until someone joins, so that a list of members costs
//! one command as a rule. Knows nothing of what records say.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flexkv_ports::{Member, StoreError};
use fred::clients::Client;
use fred::interfaces::{KeysInterface, LuaInterface, SetsInterface};
use fred::types::Value;

use crate::error::unavailable;
use crate::keys::Keys;
use crate::reply;
use crate::scripts;
use crate::servers::Servers;

/// What was known when members were last listed.
#[derive(Default)]
pub(crate) struct Members {
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    /// What changes when someone joins; none if that was lost, or nobody ever joined.
    joins: Option<Bytes>,
    /// Keys of the leases in the set of members.
    leases: Vec<String>,
}

/// A lease's key, and its record if it is held.
type Lease = (String, Option<Bytes>);

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
        let (joins, mut found) = server.records(&known.leases).await?;
        if joins.is_none() || joins != known.joins {
            // Whoever joins after this changes `joins` again.
            known.joins = joins;
            known.leases = server.leases().await?;
            (_, found) = server.records(&known.leases).await?;
        }
        let gone = found.iter().filter(|(_, record)| record.is_none());
        let gone: Vec<String> = gone.map(|(key, _)| key.clone()).collect();
        if !gone.is_empty() {
            known.leases.retain(|lease| !gone.contains(lease));
            server.prune(gone).await?;
        }
        *self.known() = known;
        let member = |(key, record): Lease| {
            let name = keys.lease_name(&key)?.to_owned();
            record.map(|record| Member { name, record })
        };
        Ok(found.into_iter().filter_map(member).collect())
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
    /// What changes when someone joins, and the records of `leases`.
    async fn records(&self, leases: &[String]) -> Result<(Option<Bytes>, Vec<Lease>), StoreError> {
        let mut keys = vec![self.keys.joins()];
        keys.extend_from_slice(leases);
        let mget = |client: Client| {
            let keys = keys.clone();
            async move { client.mget(keys).await }
        };
        let reply: Value = self.servers.quick(self.keys.lease_slot(), mget).await?;
        let mut values = reply::values(reply, keys.len()).map_err(|_| self.malformed("MGET"))?;
        let records = values.split_off(1);
        let joins = values.pop().flatten();
        Ok((joins, leases.iter().cloned().zip(records).collect()))
    }

    async fn leases(&self) -> Result<Vec<String>, StoreError> {
        let members = self.keys.members();
        let smembers = |client: Client| {
            let members = members.clone();
            async move { client.smembers(members).await }
        };
        let reply = self.servers.quick(self.keys.lease_slot(), smembers).await?;
        reply::lease_keys(reply).map_err(|_| self.malformed("SMEMBERS"))
    }

    async fn prune(&self, gone: Vec<String>) -> Result<(), StoreError> {
        let mut keys = vec![self.keys.members(), self.keys.joins()];
        keys.extend(gone);
        let eval = |client: Client| {
            let keys = keys.clone();
            async move {
                let done = client.eval(scripts::PRUNE, keys, Vec::<Value>::new());
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
