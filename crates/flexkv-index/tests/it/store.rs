//! A metadata store in virtual time, with handles to lose things. Knows nothing of blocks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flexkv_index::{PublishAction, PublishOutcome};

#[derive(Default)]
struct Log {
    entries: Vec<(u64, Bytes)>,
    expires: Duration,
    retired: bool,
}

#[derive(Default)]
pub(crate) struct Store {
    leases: BTreeMap<String, (Bytes, Duration)>,
    logs: BTreeMap<String, Log>,
}

impl Store {
    fn expire(&mut self, now: Duration) {
        self.leases.retain(|_, (_, expires)| now < *expires);
        self.logs.retain(|_, log| now < log.expires);
    }

    pub(crate) fn run(&mut self, now: Duration, action: &PublishAction) -> PublishOutcome {
        self.expire(now);
        match action {
            PublishAction::Append {
                log,
                entries,
                create,
                ttl,
            } => self.append(log, entries, create.then_some(now + *ttl)),
            PublishAction::Renew {
                name,
                record,
                log,
                ttl,
            } => {
                let expires = now + *ttl;
                let lease = self.leases.insert(name.clone(), (record.clone(), expires));
                let found = self.logs.get_mut(log);
                let log_kept = found.is_some();
                if let Some(log) = found.filter(|log| !log.retired) {
                    log.expires = expires;
                }
                PublishOutcome::Renewed {
                    lease_kept: lease.is_some(),
                    log_kept,
                }
            }
            PublishAction::Retire { log, ttl } => {
                if let Some(log) = self.logs.get_mut(log) {
                    log.retired = true;
                    log.expires = now + *ttl;
                }
                PublishOutcome::Done
            }
        }
    }

    /// Entries that are there are skipped; a hole means that the log is not what it was.
    fn append(
        &mut self,
        name: &str,
        entries: &[(u64, Bytes)],
        create: Option<Duration>,
    ) -> PublishOutcome {
        for pair in entries.windows(2) {
            assert_eq!(pair[1].0, pair[0].0 + 1, "sequences have a hole");
        }
        if let Some(expires) = create {
            self.logs.entry(name.to_owned()).or_insert_with(|| Log {
                expires,
                ..Log::default()
            });
        }
        let Some(log) = self.logs.get_mut(name) else {
            return PublishOutcome::LogLost;
        };
        for (sequence, bytes) in entries {
            let last = log.entries.last().map_or(0, |(last, _)| *last);
            if *sequence > last + 1 && last != 0 {
                return PublishOutcome::LogLost;
            }
            if *sequence > last {
                log.entries.push((*sequence, bytes.clone()));
            }
        }
        PublishOutcome::Done
    }

    pub(crate) fn members(&mut self, now: Duration) -> Vec<(String, Bytes)> {
        self.expire(now);
        let lease = |(name, (record, _)): (&String, &(Bytes, _))| (name.clone(), record.clone());
        self.leases.iter().map(lease).collect()
    }

    pub(crate) fn read(
        &mut self,
        now: Duration,
        log: &str,
        after: u64,
        limit: usize,
    ) -> Vec<(u64, Bytes)> {
        self.expire(now);
        let Some(log) = self.logs.get(log) else {
            return Vec::new();
        };
        let news = log.entries.iter().filter(|(sequence, _)| *sequence > after);
        news.take(limit).cloned().collect()
    }

    /// Number and bytes of the entries of all logs.
    pub(crate) fn size(&self) -> (usize, usize) {
        let entries = self.logs.values().flat_map(|log| &log.entries);
        entries.fold((0, 0), |(n, sum), (_, bytes)| (n + 1, sum + bytes.len()))
    }

    pub(crate) fn flush(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn lose_a_log(&mut self, rng: &mut fastrand::Rng) {
        let names: Vec<_> = self.logs.keys().cloned().collect();
        if let Some(name) = rng.choice(&names) {
            self.logs.remove(name);
        }
    }

    pub(crate) fn lose_a_lease(&mut self, rng: &mut fastrand::Rng) {
        let names: Vec<_> = self.leases.keys().cloned().collect();
        if let Some(name) = rng.choice(&names) {
            self.leases.remove(name);
        }
    }

    /// A failover to a replica that had not got everything yet.
    pub(crate) fn lose_tails(&mut self, rng: &mut fastrand::Rng) {
        for log in self.logs.values_mut() {
            let kept = log.entries.len() - rng.usize(0..=log.entries.len().min(3));
            log.entries.truncate(kept.max(1));
        }
    }

    /// Flips a bit of the last entry of a log, if it is one that its owner has not read yet.
    pub(crate) fn damage(&mut self, log: &str, after: u64, rng: &mut fastrand::Rng) {
        let last = self
            .logs
            .get_mut(log)
            .and_then(|log| log.entries.last_mut());
        if let Some((_, bytes)) = last.filter(|(sequence, _)| *sequence > after) {
            let mut damaged = bytes.to_vec();
            let at = rng.usize(0..damaged.len());
            damaged[at] ^= 1 << rng.u8(0..8);
            *bytes = damaged.into();
        }
    }
}
