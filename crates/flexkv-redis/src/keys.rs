//! The names of our keys. Knows nothing of what is stored under them.
//!
//! All keys of one namespace carry the same hash tag, so that they share a slot of a Redis cluster:
//! a reader follows all logs with one XREAD, which cannot span slots.

use flexkv_block::NamespaceId;

/// Makes and takes apart the keys of one namespace of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    lease: String,
    log: String,
    members: String,
}

impl Keys {
    /// `cluster` has none of the characters `{`, `}` and `:`.
    pub(crate) fn new(cluster: &str, namespace: NamespaceId) -> Self {
        let prefix = format!("flexkv:{{{cluster}:{namespace}}}");
        Self {
            lease: format!("{prefix}:lease:"),
            log: format!("{prefix}:log:"),
            members: format!("{prefix}:members"),
        }
    }

    /// The lease of `name`.
    pub(crate) fn lease(&self, name: &str) -> String {
        format!("{}{name}", self.lease)
    }

    /// The log called `log`.
    pub(crate) fn log(&self, log: &str) -> String {
        format!("{}{log}", self.log)
    }

    /// The set of lease keys.
    pub(crate) fn members(&self) -> String {
        self.members.clone()
    }

    /// Whose lease `key` is, if it is one of ours.
    pub(crate) fn lease_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.lease)
    }

    /// Which log `key` is, if it is one of ours.
    pub(crate) fn log_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.log)
    }
}

#[cfg(test)]
mod tests;
