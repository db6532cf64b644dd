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
