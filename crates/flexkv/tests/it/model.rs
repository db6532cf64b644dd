//! A trace made up for tests, and what an exact model of the caches says about it.
//!
//! The model: requests in order, round-robin over nodes; each node an LRU list of blocks of its
//! own, in which a request's blocks count as used from tail to head; a block hits only while the
//! prefix before it does; what a request got or computed, its node keeps.

use std::collections::HashSet;
use std::fmt::Write as _;

use fastrand::Rng;

/// A trace with shared beginnings and conversations that grow.
pub(crate) struct Trace {
    pub(crate) requests: Vec<Vec<u64>>,
}

impl Trace {
    pub(crate) fn generate(requests: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut next = 0..;
        let mut fresh = |count: usize| -> Vec<u64> { next.by_ref().take(count).collect() };
        let systems: Vec<Vec<u64>> = (0..5).map(|_| fresh(8)).collect();
        let mut open: Vec<Vec<u64>> = Vec::new();
        let mut made = Vec::new();
        for _ in 0..requests {
            if open.len() < 40 || rng.f32() < 0.2 {
                open.push(systems[rng.usize(..systems.len())].clone());
            }
            let at = rng.usize(..open.len());
            open[at].extend(fresh(rng.usize(1..6)));
            made.push(open[at].clone());
            if open[at].len() > 40 {
                open.swap_remove(at);
            }
        }
        Self { requests: made }
    }

    /// A trace with the statistics of a production trace of conversations (that of the Mooncake paper,
    /// played on caches ten times as large): 39 of 100 prompts go on where an earlier one ended, half
    /// of them after 42 others or fewer; a new one has 20 blocks on average, half of them 10 or fewer,
    /// and shares its first one with others; one that goes on has 7 more.
    pub(crate) fn conversations(requests: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut next = 5..;
        let mut made: Vec<Vec<u64>> = Vec::new();
        for number in 0..requests {
            let gap = log_normal(&mut rng, 42.0, 1.07) as usize + 1;
            let earlier = number.checked_sub(gap).filter(|_| rng.f32() < 0.39);
            let (mut prompt, more) = match earlier {
                Some(earlier) => (made[earlier].clone(), rng.usize(4..11)),
                None => {
                    let more = log_normal(&mut rng, 10.0, 1.1) as usize;
                    (vec![rng.u64(..5)], more.clamp(1, 120))
                }
            };
            prompt.extend(next.by_ref().take(more));
            made.push(prompt);
        }
        Self { requests: made }
    }

    /// As a file.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (at, ids) in self.requests.iter().enumerate() {
            let tokens = 512 * ids.len();
            writeln!(
                text,
                r#"{{"timestamp": {at}, "input_length": {tokens}, "output_length": 1, "hash_ids": {ids:?}}}"#
            )
            .unwrap();
        }
        text
    }

    pub(crate) fn blocks(&self) -> usize {
        self.requests.iter().map(Vec::len).sum()
    }

    pub(crate) fn distinct(&self) -> usize {
        let all: HashSet<&u64> = self.requests.iter().flatten().collect();
        all.len()
    }

    /// Blocks that hit on `nodes` nodes of `capacity` blocks each, which share if `global`.
    pub(crate) fn hits(&self, nodes: usize, capacity: usize, global: bool) -> usize {
        let mut caches: Vec<Vec<u64>> = vec![Vec::new(); nodes];
        let mut hits = 0;
        for (number, ids) in self.requests.iter().enumerate() {
            let turn = number % nodes;
            let visible: HashSet<u64> = if global {
                caches.iter().flatten().copied().collect()
            } else {
                caches[turn].iter().copied().collect()
            };
            hits += ids.iter().take_while(|id| visible.contains(id)).count();
            let used: HashSet<u64> = ids.iter().copied().collect();
            let rest = caches[turn].iter().filter(|id| !used.contains(id));
            let mut cache: Vec<u64> = ids.iter().chain(rest).copied().collect();
            cache.truncate(capacity);
            caches[turn] = cache;
        }
        hits
    }

    /// Blocks that hit an ideal cache of two levels that all nodes share, in order of use: what leaves
    /// the first level goes on to the second, so both are one list.
    pub(crate) fn two_level_hits(&self, first: usize, second: usize) -> usize {
        self.hits(1, first + second, true)
    }
}

/// A number that is below `median` as often as above it; its logarithm has this standard deviation.
fn log_normal(rng: &mut Rng, median: f64, deviation: f64) -> f64 {
    let angle = rng.f64() * std::f64::consts::TAU;
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * angle.cos();
    median * (deviation * normal).exp()
}
