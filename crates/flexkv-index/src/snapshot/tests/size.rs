//! What a block of which there is one replica takes, in prompts of any length.

use super::*;

/// Prompts that are told by turns.
const AT_ONCE: usize = 32;

/// Bytes a replica of about `replicas`, in prompts of so many blocks that one owner tells by turns.
fn bytes_a_replica(replicas: usize, blocks: std::ops::RangeInclusive<usize>, turn: usize) -> f64 {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut writer, _reader) = snapshot();
    let owner = live_owner(&mut writer);
    while writer.stats().replicas < replicas {
        let mut prompt = || -> Vec<u64> {
            let len = rng.usize(blocks.clone());
            std::iter::repeat_with(|| rng.u64(..)).take(len).collect()
        };
        let prompts: Vec<_> = (0..AT_ONCE).map(|_| prompt()).collect();
        for start in (0..*blocks.end()).step_by(turn) {
            for prompt in prompts.iter().filter(|prompt| prompt.len() > start) {
                let run = &prompt[start..prompt.len().min(start + turn)];
                let parent = start.checked_sub(1).map(|at| prompt[at]);
                writer.add_run(owner, parent, run, &locations(owner, run));
            }
        }
    }
    let stats = writer.stats();
    stats.bytes as f64 / stats.replicas as f64
}

#[test]
fn a_replica_that_nobody_shares_takes_32_bytes() {
    let long = bytes_a_replica(1_000_000, 2048..=2048, 32);
    let chats = bytes_a_replica(1_000_000, 14..=14, 5);
    let short = bytes_a_replica(1_000_000, 5..=14, 5);
    let all = [long, chats, short];
    assert!(all.iter().all(|bytes| *bytes <= 32.0), "{all:.1?} bytes");
}

/// Prompts of which one owner holds all and another one the first half.
struct Shared {
    writer: SnapshotWriter,
    owners: [OwnerId; 2],
    prompts: Vec<Vec<u64>>,
}

const LONG: usize = 2048;
const RUN: usize = 32;

impl Shared {
    fn new(replicas: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut writer, _reader) = snapshot();
        let owners = [live_owner(&mut writer), live_owner(&mut writer)];
        let mut prompt = || std::iter::repeat_with(|| rng.u64(..)).take(LONG).collect();
        let prompts = replicas / (LONG * 3 / 2);
        let prompts = (0..prompts).map(|_| prompt()).collect();
        Self {
            writer,
            owners,
            prompts,
        }
    }

    fn add(&mut self, prompts: std::ops::Range<usize>) {
        let [all, half] = self.owners;
        for start in (0..LONG).step_by(RUN) {
            for prompt in &self.prompts[prompts.clone()] {
                let run = &prompt[start..start + RUN];
                let parent = start.checked_sub(1).map(|at| prompt[at]);
                for owner in [all].into_iter().chain((start < LONG / 2).then_some(half)) {
                    let places = locations(owner, run);
                    self.writer.add_run(owner, parent, run, &places);
                }
            }
        }
    }

    fn remove(&mut self, prompt: usize) {
        let [all, half] = self.owners;
        for run in self.prompts[prompt].rchunks(RUN) {
            self.writer.remove(all, run);
            self.writer.remove(half, run);
        }
    }

    fn bytes_a_replica(&self) -> f64 {
        let stats = self.writer.stats();
        stats.bytes as f64 / stats.replicas as f64
    }
}

#[test]
fn a_replica_of_a_shared_block_takes_20_bytes_also_when_all_was_replaced() {
    let mut shared = Shared::new(1_000_000);
    let prompts = shared.prompts.len();
    for first in (0..prompts).step_by(AT_ONCE) {
        shared.add(first..prompts.min(first + AT_ONCE));
    }
    let fresh = shared.bytes_a_replica();
    for prompt in 0..prompts {
        shared.remove(prompt);
        shared.add(prompt..prompt + 1);
    }
    let replaced = shared.bytes_a_replica();
    assert!(
        fresh <= 20.0 && replaced <= 20.0,
        "{fresh:.2} and {replaced:.2} bytes"
    );
}
