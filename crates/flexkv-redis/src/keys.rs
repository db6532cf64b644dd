//! The names of our keys. Knows nothing of what is stored under them.
//!
//! Leases and members of a namespace share a hash tag, and with it a slot of a Redis cluster, as one
//! command reads them all. Logs are spread over [`GROUPS`] tags: over the servers of a cluster, but
//! few enough that one connection can wait for each.

use flexkv_block::{Checksum, NamespaceId};
use fred::util::redis_keyslot;

/// How many slots of a cluster the logs of a namespace lie in.
pub(crate) const GROUPS: u8 = 16;

/// Makes and takes apart the keys of one namespace of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// What all keys begin with, up to within the hash tag.
    prefix: String,
    lease: String,
}

impl Keys {
    /// `cluster` has none of the characters `{`, `}` and `:`.
    pub(crate) fn new(cluster: &str, namespace: NamespaceId) -> Self {
        let prefix = format!("flexkv:{{{cluster}:{namespace}");
        Self {
            lease: format!("{prefix}}}:lease:"),
            prefix,
        }
    }

    /// The lease of `name`.
    pub(crate) fn lease(&self, name: &str) -> String {
        format!("{}{name}", self.lease)
    }

    /// The lease keys, each with the number of its last change.
    pub(crate) fn members(&self) -> String {
        format!("{}}}:members", self.prefix)
    }

    /// How often members have changed.
    pub(crate) fn changes(&self) -> String {
        format!("{}}}:changes", self.prefix)
    }

    /// The lease keys that went last, each with the number of that change.
    pub(crate) fn gone(&self) -> String {
        format!("{}}}:gone", self.prefix)
    }

    /// Whose lease `key` is, if it is one of ours.
    pub(crate) fn lease_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.lease)
    }

    /// The log called `log`.
    pub(crate) fn log(&self, log: &str) -> String {
        format!("{}:{:x}}}:log:{log}", self.prefix, group(log))
    }

    /// Which log `key` is, if it is one of ours.
    pub(crate) fn log_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix(':')?;
        let (digit, log) = rest.split_once("}:log:")?;
        (digit == format!("{:x}", group(log))).then_some(log)
    }

    /// The slot of the leases.
    pub(crate) fn lease_slot(&self) -> u16 {
        slot(&self.members())
    }

    /// The slot of the log called `log`.
    pub(crate) fn log_slot(&self, log: &str) -> u16 {
        slot(&self.log(log))
    }
}

/// Which of the groups the log called `log` is in. Not by the hash of slots: names that are alike
/// would be in few groups.
pub(crate) fn group(log: &str) -> u8 {
    (Checksum::of(log.as_bytes()).0 % u64::from(GROUPS)) as u8
}

fn slot(key: &str) -> u16 {
    redis_keyslot(key.as_bytes())
}

#[cfg(test)]
mod tests;
