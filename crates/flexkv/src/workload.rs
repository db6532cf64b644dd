//! A seeded chat workload: conversations of several turns over a few shared system prompts, dealt
//! to engines so that a conversation seldom stays where it was. Knows nothing of caches.

use std::sync::Arc;

use fastrand::Rng;
use flexkv_block::{BlockKey, ClusterSecret, KeyChain, TokenId};

/// Size and shape of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatSpec {
    /// Requests in all.
    pub requests: usize,
    /// Engines to deal them to.
    pub engines: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// System prompts that conversations share.
    pub system_prompts: usize,
    /// Tokens of a system prompt.
    pub system_tokens: usize,
    /// Most turns of a conversation.
    pub max_turns: usize,
    /// Most tokens that a turn adds, question and answer before it together.
    pub max_turn_tokens: usize,
}

/// One request: the whole conversation so far, as prompts of chat services are.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Which engine processes it.
    pub engine: usize,
    /// Its complete blocks.
    pub keys: Arc<[BlockKey]>,
}

/// Requests in rounds: those of one round are independent of each other, each continues a
/// conversation of an earlier round or begins one.
#[derive(Clone, Debug)]
pub struct ChatWorkload {
    /// The rounds, in order.
    pub rounds: Vec<Vec<ChatRequest>>,
}

/// A conversation under way.
struct Conversation {
    chain: KeyChain,
    keys: Vec<BlockKey>,
    turns_left: usize,
}

impl ChatWorkload {
    /// The workload of `spec` and `seed`: the same for the same arguments.
    pub fn generate(spec: &ChatSpec, secret: &ClusterSecret, root: BlockKey, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let systems: Vec<Conversation> = (0..spec.system_prompts.max(1))
            .map(|_| {
                let mut conversation = Conversation {
                    chain: KeyChain::new(secret, root, spec.block_tokens),
                    keys: Vec::new(),
                    turns_left: 0,
                };
                conversation.say(spec.system_tokens, &mut rng);
                conversation
            })
            .collect();
        let per_round = (2 * spec.engines).max(1);
        let mut open: Vec<Conversation> = Vec::new();
        let mut rounds = Vec::new();
        let mut left = spec.requests;
        while left > 0 {
            open.retain(|conversation| conversation.turns_left > 0);
            while open.len() < per_round {
                let system = &systems[rng.usize(..systems.len())];
                open.push(Conversation {
                    chain: system.chain.clone(),
                    keys: system.keys.clone(),
                    turns_left: rng.usize(1..=spec.max_turns.max(1)),
                });
            }
            let now = left.min(per_round);
            rounds.push(
                open[..now]
                    .iter_mut()
                    .map(|conversation| conversation.turn(spec, &mut rng))
                    .collect(),
            );
            left -= now;
        }
        Self { rounds }
    }

    /// Requests of all rounds.
    pub fn requests(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }
}

impl Conversation {
    fn say(&mut self, tokens: usize, rng: &mut Rng) {
        let tokens: Vec<TokenId> = (0..tokens).map(|_| rng.u32(..)).collect();
        self.chain.extend(&tokens, &mut self.keys);
    }

    fn turn(&mut self, spec: &ChatSpec, rng: &mut Rng) -> ChatRequest {
        self.turns_left -= 1;
        let most = spec.max_turn_tokens.max(1);
        self.say(rng.usize(most.div_ceil(4)..=most), rng);
        ChatRequest {
            engine: rng.usize(..spec.engines.max(1)),
            keys: self.keys.as_slice().into(),
        }
    }
}

#[cfg(test)]
mod tests;
