//! What the benchmarks fill an index with: prompts, and the runs of blocks in which owners tell what
//! they hold of them.
//!
//! Runs of many conversations come mixed, as they do from owners that serve many at a time. Knows
//! nothing of what is measured.

use std::time::Duration;

use fastrand::Rng;
use flexkv_block::{BlockKey, Generation, Location, SlotId, Tier};
use flexkv_index::{
    MatchOptions, OwnerId, OwnerSet, PrefixMatch, Snapshot, SnapshotWriter, snapshot,
};
use tokio::time::Instant;

use crate::report::Times;

/// Blocks of a prompt: 32,768 tokens, 16 a block.
pub(super) const PROMPT_BLOCKS: usize = 2048;
/// Blocks of a system prompt.
const SYSTEM_BLOCKS: usize = 256;
const SYSTEM_PROMPTS: usize = 8;
/// Blocks that an owner publishes together.
const RUN_BLOCKS: usize = 32;
/// Runs that are timed together.
const RUNS_TIMED: usize = 16;
/// Conversations whose runs come mixed.
const AT_ONCE: usize = 32;
/// Owners that hold one piece after the other of a prompt where each holds pieces only.
pub(super) const PIECES: usize = 10;

/// Consecutive blocks that an owner tells of.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) owner: usize,
    pub(super) parent: Option<u64>,
    pub(super) fingerprints: Vec<u64>,
    pub(super) places: Vec<Location>,
}

/// Prompts and who holds what of them.
pub(super) struct Content {
    pub(super) prompts: Vec<Vec<BlockKey>>,
    /// For each prompt.
    pub(super) runs: Vec<Vec<Run>>,
    pub(super) owners: usize,
    slots: u32,
}

pub(super) fn key(rng: &mut Rng) -> BlockKey {
    BlockKey::from_u128(rng.u128(..))
}

/// Prompts over shared system prompts.
fn prompts(count: usize, rng: &mut Rng) -> Vec<Vec<BlockKey>> {
    let systems: Vec<Vec<BlockKey>> = (0..SYSTEM_PROMPTS)
        .map(|_| (0..SYSTEM_BLOCKS).map(|_| key(rng)).collect())
        .collect();
    (0..count)
        .map(|number| {
            let mut keys = systems[number % SYSTEM_PROMPTS].clone();
            keys.resize_with(PROMPT_BLOCKS, || key(rng));
            keys
        })
        .collect()
}

impl Content {
    fn new(prompts: Vec<Vec<BlockKey>>, owners: usize) -> Self {
        Self {
            runs: vec![Vec::new(); prompts.len()],
            prompts,
            owners,
            slots: 0,
        }
    }

    /// An owner holds a part of a prompt, and tells so in runs of so many blocks.
    fn hold(&mut self, prompt: usize, owner: usize, part: std::ops::Range<usize>, run: usize) {
        let keys = &self.prompts[prompt];
        for start in part.clone().step_by(run) {
            let fingerprints: Vec<u64> = keys[start..part.end.min(start + run)]
                .iter()
                .map(|key| key.fingerprint())
                .collect();
            let first = self.slots;
            self.slots += fingerprints.len() as u32;
            self.runs[prompt].push(Run {
                owner: owner % self.owners,
                parent: start
                    .checked_sub(1)
                    .map(|before| keys[before].fingerprint()),
                fingerprints,
                places: (first..self.slots).map(place).collect(),
            });
        }
    }

    /// Conversations that move between nodes: all of a prompt lies at its last owner, and less at
    /// each one before it. About so many replicas in all, of which a block has (owners + 1) / 2.
    pub(super) fn moved(replicas: usize, holders: usize, owners: usize, rng: &mut Rng) -> Self {
        let each = PROMPT_BLOCKS * (holders + 1) / 2;
        let mut content = Self::new(prompts(replicas.div_ceil(each), rng), owners);
        for prompt in 0..content.prompts.len() {
            for holder in 1..=holders {
                let len = PROMPT_BLOCKS * holder / holders;
                content.hold(prompt, prompt * 7 + holder * 5, 0..len, RUN_BLOCKS);
            }
        }
        content
    }

    /// The same, and every owner holds every system prompt.
    pub(super) fn known_to_all(replicas: usize, owners: usize, rng: &mut Rng) -> Self {
        let mut content = Self::moved(replicas, 2, owners, rng);
        for system in 0..SYSTEM_PROMPTS.min(content.prompts.len()) {
            for owner in 0..owners {
                content.hold(system, owner, 0..SYSTEM_BLOCKS, SYSTEM_BLOCKS);
            }
        }
        content
    }

    /// Prompts of which each owner holds pieces only: two owners hold each piece, one of them not
    /// all of it, and a third one holds every second run of all.
    pub(super) fn pieces(replicas: usize, owners: usize, rng: &mut Rng) -> Self {
        let each = PROMPT_BLOCKS * 9 / 4;
        let mut content = Self::new(prompts(replicas.div_ceil(each), rng), owners);
        for prompt in 0..content.prompts.len() {
            for piece in 0..PIECES {
                let bounds = [piece, piece + 1].map(|piece| PROMPT_BLOCKS * piece / PIECES);
                let [start, end] = bounds;
                let owner = prompt + piece * 3;
                content.hold(prompt, owner, start..end, RUN_BLOCKS);
                let cut = (end - start) / 8;
                content.hold(prompt, owner + 1, start + cut..end - cut, RUN_BLOCKS);
            }
            for start in (0..PROMPT_BLOCKS).step_by(2 * RUN_BLOCKS) {
                content.hold(prompt, prompt + 2, start..start + RUN_BLOCKS, RUN_BLOCKS);
            }
        }
        content
    }

    /// Prompts of `blocks` that nobody shares, each with one owner, told in turns of `turn` blocks.
    pub(super) fn alone(
        replicas: usize,
        blocks: std::ops::RangeInclusive<usize>,
        turn: usize,
        rng: &mut Rng,
    ) -> Self {
        let mut prompts = Vec::new();
        let mut sum = 0;
        while sum < replicas {
            let len = rng.usize(blocks.clone());
            prompts.push((0..len).map(|_| key(rng)).collect());
            sum += len;
        }
        let mut content = Self::new(prompts, 1);
        for prompt in 0..content.prompts.len() {
            content.hold(prompt, 0, 0..content.prompts[prompt].len(), turn);
        }
        content
    }

    /// All runs in the order in which they come.
    fn mixed(&self) -> impl Iterator<Item = &Run> {
        self.runs.chunks(AT_ONCE).flat_map(|prompts| {
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
            (0..longest)
                .flat_map(move |number| prompts.iter().filter_map(move |runs| runs.get(number)))
        })
    }
}

/// The location in host memory of a block that was stored in this slot.
fn place(slot: u32) -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    }
}

/// What changes cost, per block.
#[derive(Default)]
pub(super) struct PerBlock {
    /// Of many steps, one each.
    steps: Times,
    time: Duration,
    blocks: usize,
}

impl PerBlock {
    /// Adds a step that changed so many blocks.
    pub(super) fn add(&mut self, time: Duration, blocks: usize) {
        // In picoseconds where `Times` says nanoseconds, as a block takes few of these.
        self.steps.add(time * 1000 / blocks.max(1) as u32);
        self.time += time;
        self.blocks += blocks;
    }

    /// The median of the steps, in us.
    pub(super) fn median(&self) -> f64 {
        self.steps.micros(0.5) / 1000.0
    }

    /// Everything, in us; also the times when other programs had the processor.
    pub(super) fn mean(&self) -> f64 {
        self.time.as_secs_f64() * 1e6 / self.blocks.max(1) as f64
    }
}

/// An index with content.
pub(super) struct Filled {
    pub(super) writer: SnapshotWriter,
    pub(super) reader: Snapshot,
    pub(super) owners: Vec<OwnerId>,
}

impl Filled {
    /// Fills an index; tells how long that took.
    pub(super) fn new(content: &Content) -> (Self, PerBlock) {
        let (mut writer, reader) = snapshot();
        let owners: Vec<OwnerId> = (0..content.owners)
            .map_while(|_| writer.add_owner())
            .collect();
        let runs: Vec<&Run> = content.mixed().collect();
        let mut took = PerBlock::default();
        for runs in runs.chunks(RUNS_TIMED) {
            let began = Instant::now();
            for run in runs {
                let owner = owners[run.owner];
                writer.add_run(owner, run.parent, &run.fingerprints, &run.places);
            }
            let blocks = runs.iter().map(|run| run.places.len()).sum();
            took.add(began.elapsed(), blocks);
        }
        owners
            .iter()
            .for_each(|owner| writer.set_live(*owner, true));
        let filled = Self {
            writer,
            reader,
            owners,
        };
        (filled, took)
    }

    pub(super) fn bytes_per_replica(&self) -> f64 {
        let stats = self.reader.stats();
        stats.bytes as f64 / stats.replicas.max(1) as f64
    }
}

/// Finds a prompt's blocks, as node `own` does.
pub(super) fn find(reader: &Snapshot, own: OwnerId, keys: &[BlockKey], found: &mut PrefixMatch) {
    let options = MatchOptions {
        prefer: Some(own),
        exclude: &OwnerSet::EMPTY,
    };
    reader.match_prefix(keys, &options, found);
}

/// Lets everything of a prompt go and come back, in the order of its runs. How many blocks that is.
pub(super) fn renew(writer: &mut SnapshotWriter, owners: &[OwnerId], runs: &[Run]) -> usize {
    for run in runs.iter().rev() {
        writer.remove(owners[run.owner], &run.fingerprints);
    }
    for run in runs {
        writer.add_run(
            owners[run.owner],
            run.parent,
            &run.fingerprints,
            &run.places,
        );
    }
    2 * runs.iter().map(|run| run.places.len()).sum::<usize>()
}
