//! One node publishes everything it has; another comes new and reads it. The owner is a publisher and
//! a residency without slots: what it holds is nowhere.

use std::time::Duration;

use anyhow::{Result, bail};
use fastrand::Rng;
use flexkv_block::{BlockKey, Generation, Location, SlotId, Tier};
use flexkv_index::{
    Follower, FollowerConfig, NodeId, NodeInfo, PublishAction, Publisher, PublisherConfig,
    Residency,
};
use flexkv_ports::{LogCursor, MetadataStore};
use flexkv_redis::RedisStore;
use tokio::time::Instant;

use super::{BLOCK_BYTES, BLOCK_TOKENS, Plan, Served};
use crate::bench::{Better, Row, median};
use crate::cluster::{Deployment, connect};

/// Blocks of a prompt.
const PROMPT_BLOCKS: usize = 2048;
/// Entries in one reading of a log.
const ENTRIES: usize = 64;
/// How often everything is measured.
const ROUNDS: u64 = 5;
const LEASE: Duration = Duration::from_secs(600);

const ORIGINAL: &str = "FlexKV (original)";

/// One round.
struct Round {
    published: Duration,
    /// Under the lock that a node's blocks come and go under: in all, and at once.
    locked: Duration,
    longest: Duration,
    newcomer: Duration,
    bytes: f64,
}

pub(super) async fn measure(plan: &Plan) -> Result<Vec<Row>> {
    let deployment = Deployment::synthetic(BLOCK_TOKENS, BLOCK_BYTES)?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(Round::measure(plan, &deployment, round).await?);
    }
    let middle = |of: fn(&Round) -> Duration| median(rounds.iter().map(|r| of(r).as_secs_f64()));
    let blocks = plan.blocks as f64;
    let bytes = median(rounds.iter().map(|round| round.bytes)) / blocks;
    let publish = middle(|round| round.published) * 1e6 / blocks;
    let (longest, locked) = (middle(|r| r.longest) * 1e3, middle(|r| r.locked) * 1e3);
    let newcomer = middle(|round| round.newcomer);
    let lower = Better::Lower;
    Ok(vec![
        Row::new("publish, per block", publish, "us", lower)
            .target(0.5)
            .peer(ORIGINAL, 14.0),
        Row::new(
            "longest hold of the node's lock meanwhile",
            longest,
            "ms",
            lower,
        )
        .target(5.0),
        Row::new("all such holds", locked, "ms", lower),
        Row::new("a newcomer's snapshot", newcomer, "s", lower)
            .target(1.2)
            .peer(ORIGINAL, 14.7),
        Row::new("memory in Redis, per block", bytes, "B", lower)
            .target(20.0)
            .peer(ORIGINAL, 170.0),
    ])
}

impl Round {
    async fn measure(plan: &Plan, deployment: &Deployment, round: u64) -> Result<Self> {
        let store = connect(&plan.redis, deployment).await?;
        let mut owner = Owner::new(deployment, round, plan.blocks)?;
        let before = Served::by(&store).await?.memory;
        let began = Instant::now();
        owner.publish(&store).await?;
        let published = began.elapsed();
        let bytes = Served::by(&store).await?.memory - before;
        let newcomer = come_new(plan, deployment).await?;
        let node = owner.publisher.info().node();
        store.leave(&node.to_string(), &node.log(1)).await?;
        Ok(Self {
            published,
            locked: owner.locked,
            longest: owner.longest,
            newcomer,
            bytes,
        })
    }
}

/// A node that holds blocks only on paper.
struct Owner {
    publisher: Publisher,
    held: Residency,
    locked: Duration,
    longest: Duration,
}

impl Owner {
    fn new(deployment: &Deployment, number: u64, blocks: usize) -> Result<Self> {
        let config = PublisherConfig {
            lease_ttl: LEASE,
            ..PublisherConfig::default()
        };
        let mut rng = Rng::with_seed(number);
        let mut held = Residency::default();
        let mut parent = None;
        for block in 0..blocks {
            let key = BlockKey::from_u128(rng.u128(..));
            let slot = SlotId(u32::try_from(block)?);
            held.insert(key, parent.filter(|_| block % PROMPT_BLOCKS > 0), at(slot));
            parent = Some(key);
        }
        Ok(Self {
            publisher: Publisher::new(config, info(deployment, number)?),
            held,
            locked: Duration::ZERO,
            longest: Duration::ZERO,
        })
    }

    /// Publishes everything, as a node does.
    async fn publish(&mut self, store: &RedisStore) -> Result<()> {
        let began = Instant::now();
        while !self.publisher.is_settled() {
            let asked = Instant::now();
            let action = self.publisher.poll(began.elapsed(), &self.held);
            let took = asked.elapsed();
            self.locked += took;
            self.longest = self.longest.max(took);
            let Some(action) = action else { continue };
            let is_renewal = matches!(action, PublishAction::Renew { .. });
            let outcome = flexkv_node::carry_out(store, action).await?;
            if !is_renewal && outcome != flexkv_index::PublishOutcome::Done {
                bail!("the server lost what was published: {outcome:?}");
            }
            self.publisher.handle(began.elapsed(), outcome);
        }
        Ok(())
    }
}

fn info(deployment: &Deployment, number: u64) -> Result<NodeInfo> {
    let node = NodeId {
        name: format!("bench-{number}").parse()?,
        incarnation: Rng::new().u64(..),
    };
    let bytes = u32::try_from(deployment.block_bytes)?;
    let endpoints = vec![format!("tcp://192.0.2.1:{}", number + 1)];
    let info = NodeInfo::new(node, deployment.namespace, bytes, String::new(), endpoints);
    Ok(info?)
}

fn at(slot: SlotId) -> Location {
    Location {
        tier: Tier::Host,
        slot,
        generation: Generation::FIRST,
    }
}

/// How long it takes from nothing, not even a connection, to knowing all blocks.
async fn come_new(plan: &Plan, deployment: &Deployment) -> Result<Duration> {
    let began = Instant::now();
    let store = connect(&plan.redis, deployment).await?;
    let mut follower = Follower::new(FollowerConfig::default(), info(deployment, 1000)?);
    let (mut writer, snapshot) = flexkv_index::snapshot();
    let members = store.members().await?;
    let members: Vec<_> = members.into_iter().map(|m| (m.name, m.record)).collect();
    follower.members(began.elapsed(), &members, &mut writer);
    while follower.loading() > 0 {
        let cursors = follower.cursors().into_iter();
        let cursors: Vec<_> = cursors
            .map(|(log, after)| LogCursor { log, after })
            .collect();
        for read in store.read(&cursors, ENTRIES, LEASE).await? {
            let entries = read.entries.into_iter().map(|e| (e.sequence, e.bytes));
            let entries: Vec<_> = entries.collect();
            follower.entries(began.elapsed(), &read.log, &entries, &mut writer);
        }
    }
    let took = began.elapsed();
    let known = snapshot.stats().blocks;
    if known != plan.blocks {
        bail!("the newcomer knows {known} blocks of {}", plan.blocks);
    }
    Ok(took)
}
