//! The chat workload: repeatable, of the size asked for, and with something to reuse.

use std::collections::{HashMap, HashSet};

use super::*;

const SPEC: ChatSpec = ChatSpec {
    requests: 203,
    engines: 8,
    block_tokens: 16,
    system_prompts: 3,
    system_tokens: 256,
    max_turns: 5,
    max_turn_tokens: 128,
};

fn generate(seed: u64) -> ChatWorkload {
    let secret = ClusterSecret::derive(b"workload tests");
    ChatWorkload::generate(&SPEC, &secret, BlockKey::from_u128(1), seed)
}

fn flat(workload: &ChatWorkload) -> Vec<(usize, Arc<[BlockKey]>)> {
    let requests = workload.rounds.iter().flatten();
    requests
        .map(|request| (request.engine, request.keys.clone()))
        .collect()
}

#[test]
fn a_seed_gives_one_workload() {
    assert_eq!(flat(&generate(7)), flat(&generate(7)));
    assert_ne!(flat(&generate(7)), flat(&generate(8)));
    assert_eq!(generate(7).requests(), SPEC.requests);
}

#[test]
fn system_prompts_are_shared_and_conversations_move() {
    let workload = generate(1);
    let requests = flat(&workload);
    let systems: HashSet<_> = requests.iter().map(|(_, keys)| keys[15]).collect();
    assert_eq!(systems.len(), SPEC.system_prompts);

    // Block 16 is the first that a conversation has to itself.
    let mut engines: HashMap<BlockKey, HashSet<usize>> = HashMap::new();
    for (engine, keys) in &requests {
        engines.entry(keys[16]).or_default().insert(*engine);
    }
    let moved = engines.values().filter(|engines| engines.len() > 1).count();
    assert!(
        moved * 2 > engines.len(),
        "{moved} of {} move",
        engines.len()
    );
}

#[test]
fn a_round_never_holds_two_turns_of_one_conversation() {
    for round in &generate(2).rounds {
        let conversations: HashSet<_> = round.iter().map(|request| request.keys[16]).collect();
        assert_eq!(conversations.len(), round.len());
    }
}
