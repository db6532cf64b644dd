//! Who is there: joins, refusals, later lives, departures. Knows nothing of what logs say.

use super::*;

impl Follower {
    /// Takes a complete list of members: names and records. Must not be called when the store did
    /// not answer; wants to be called about every second while it does.
    pub fn members(
        &mut self,
        now: Duration,
        members: &[(String, Bytes)],
        writer: &mut SnapshotWriter,
    ) {
        let listed: BTreeSet<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        self.refused
            .retain(|name, _| listed.contains(name.as_str()));
        self.superseded
            .retain(|node| listed.contains(node.to_string().as_str()));
        let mut present = BTreeSet::new();
        for (name, bytes) in members {
            match self.admit(name, bytes) {
                Ok(record) => {
                    self.refused.remove(name);
                    let node = record.info.node().clone();
                    if self.is_superseded(&record.info) {
                        self.superseded.insert(node);
                    } else {
                        present.insert(node);
                        self.member(now, record, writer);
                    }
                }
                Err(reason) => self.refuse(name, reason),
            }
        }
        self.supersede(now, writer);
        self.drop_absent(now, &present, writer);
        self.listed_at = Some(now);
    }

    fn admit(&self, name: &str, bytes: &[u8]) -> Result<NodeRecord, Refusal> {
        let record = NodeRecord::decode(bytes)?;
        let info = &record.info;
        if info.node().to_string() != name {
            return Err(Refusal::Name {
                found: info.node().clone(),
            });
        }
        if info.namespace() != self.own.namespace() {
            return Err(Refusal::Namespace);
        }
        if info.block_bytes() != self.own.block_bytes() {
            return Err(Refusal::BlockBytes {
                found: info.block_bytes(),
                expected: self.own.block_bytes(),
            });
        }
        Ok(record)
    }

    fn refuse(&mut self, name: &str, reason: Refusal) {
        if self.refused.get(name) == Some(&reason) {
            return;
        }
        self.refused.insert(name.to_owned(), reason.clone());
        self.event(FollowerEvent::Refused {
            member: name.to_owned(),
            reason,
        });
    }

    /// An earlier life of ours, or a member that was found to be an earlier life of another.
    fn is_superseded(&self, info: &NodeInfo) -> bool {
        self.superseded.contains(info.node()) || is_other_life(&self.own, info)
    }

    /// A member that may take part.
    fn member(&mut self, now: Duration, record: NodeRecord, writer: &mut SnapshotWriter) {
        let node = record.info.node().clone();
        let Some(mut peer) = self.peers.remove(&node) else {
            let log = (record.epoch, record.log_start);
            let mut peer = Peer::new(record, node == *self.own.node(), now);
            self.event(FollowerEvent::Joined { node: node.clone() });
            self.load(now, &mut peer, log, writer);
            self.peers.insert(node, peer);
            return;
        };
        peer.absent = Duration::ZERO;
        if record.epoch >= peer.record.epoch && record != *peer.record {
            peer.record = Arc::new(record);
            self.changes += 1;
        }
        if let Some(log) = self.log_to_load(now, &mut peer) {
            self.load(now, &mut peer, log, writer);
        }
        self.peers.insert(node, peer);
    }

    /// Which log to load from its start, if any.
    fn log_to_load(&self, now: Duration, peer: &mut Peer) -> Option<(u32, u64)> {
        let announced = (peer.record.epoch, peer.record.log_start);
        let waited = match peer.state {
            State::Waiting(until) => now >= until,
            _ => false,
        };
        if announced.0 <= peer.epoch {
            return waited.then_some((peer.epoch, peer.log_start));
        }
        // Whoever reads the old log to its end needs no checkpoint.
        let ends_there = peer.record.rotated && announced.0 == peer.epoch + 1;
        if ends_there && peer.is_reading() {
            let until = *peer.grace.get_or_insert(now + self.config.rotate_grace);
            if now < until {
                return None;
            }
        }
        Some(announced)
    }

    /// Removes nodes that a later life has replaced: same name, a common endpoint, known before the
    /// other came. Of two that came in the same list nobody knows which is later; the lease tells.
    fn supersede(&mut self, now: Duration, writer: &mut SnapshotWriter) {
        let mut replaced = Vec::new();
        for later in self.peers.values().filter(|peer| peer.joined_at == now) {
            let earlier = self.peers.values().filter(|peer| {
                peer.joined_at < now && is_other_life(&later.record.info, &peer.record.info)
            });
            replaced.extend(earlier.map(|peer| (peer.node().clone(), later.node().clone())));
        }
        for (node, by) in replaced {
            if self.forget(&node, writer) {
                self.superseded.insert(node.clone());
                self.event(FollowerEvent::Superseded { node, by });
            }
        }
    }

    /// Counts how long nodes are missing. Time in which nobody listed members counts little, so
    /// that a store that was away for long does not take its members with it.
    fn drop_absent(
        &mut self,
        now: Duration,
        present: &BTreeSet<NodeId>,
        writer: &mut SnapshotWriter,
    ) {
        let since = now.saturating_sub(self.listed_at.unwrap_or(now));
        let step = since.min(self.config.gone_after / 3);
        let mut gone = Vec::new();
        for (node, peer) in &mut self.peers {
            if !present.contains(node) {
                peer.absent += step;
                if peer.absent >= self.config.gone_after {
                    gone.push(node.clone());
                }
            }
        }
        for node in gone {
            self.forget(&node, writer);
            self.event(FollowerEvent::Gone { node });
        }
    }

    fn forget(&mut self, node: &NodeId, writer: &mut SnapshotWriter) -> bool {
        let Some(mut peer) = self.peers.remove(node) else {
            return false;
        };
        peer.abandon(writer);
        if let Some(owner) = peer.serving.take() {
            writer.remove_owner(owner);
            self.changes += 1;
        }
        true
    }
}

/// Whether two incarnations of one name share an endpoint, which only one of them can serve.
fn is_other_life(one: &NodeInfo, other: &NodeInfo) -> bool {
    let (a, b) = (one.node(), other.node());
    a.name == b.name
        && a.incarnation != b.incarnation
        && one
            .endpoints()
            .iter()
            .any(|uri| other.endpoints().contains(uri))
}
