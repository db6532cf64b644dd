//! What is asked of the instances: conversations of one or more turns, each a prompt of token ids
//! that repeats all that was said before. Knows nothing of servers.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::content::splitmix;
use crate::trace::{TRACE_BLOCK_TOKENS, TraceRequest};

/// The first token id that is used: those below are often special.
const FIRST_TOKEN: u32 = 16;

/// Size and shape of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Requests in all.
    pub requests: usize,
    /// Prompts' beginnings that conversations share.
    pub prefixes: usize,
    /// Tokens of such a beginning.
    pub prefix_tokens: usize,
    /// Most turns of a conversation.
    pub max_turns: usize,
    /// Most tokens of a question.
    pub question_tokens: usize,
    /// Tokens of an answer.
    pub answer_tokens: usize,
    /// Token ids are below this.
    pub vocabulary: u32,
}

/// Tokens that a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    seed: u64,
    tokens: usize,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turn {
    question: Vec<Part>,
    answer_tokens: usize,
}

/// Turns that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// What a router that keeps like prompts together goes by.
    pub affinity: u64,
    turns: VecDeque<Turn>,
    said: Vec<u32>,
}

/// A prompt to send now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How many tokens to answer.
    pub answer_tokens: usize,
    /// Whether it had to be made shorter for the model.
    pub cut: bool,
}

/// Conversations under way, in the order in which their next turns come.
#[derive(Clone, Debug)]
pub struct Workload {
    ready: VecDeque<Conversation>,
    requests: usize,
    vocabulary: u32,
}

impl Workload {
    /// Conversations of several turns; each begins with one of the shared prefixes.
    pub fn chats(shape: &Shape, seed: u64) -> Self {
        Self::drawn(shape, seed, shape.max_turns.max(1))
    }

    /// Single questions; each begins with one of the shared prefixes.
    pub fn prefixes(shape: &Shape, seed: u64) -> Self {
        Self::drawn(shape, seed, 1)
    }

    fn drawn(shape: &Shape, seed: u64, max_turns: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let prefixes: Vec<u64> = (0..shape.prefixes.max(1)).map(|_| rng.u64(..)).collect();
        let mut ready = VecDeque::new();
        let mut left = shape.requests;
        while left > 0 {
            let prefix = Part {
                seed: prefixes[rng.usize(..prefixes.len())],
                tokens: shape.prefix_tokens,
            };
            let turns = rng.usize(1..=max_turns).min(left);
            left -= turns;
            let mut conversation = Conversation {
                affinity: prefix.seed,
                turns: (0..turns).map(|_| shape.turn(&mut rng)).collect(),
                said: Vec::new(),
            };
            if max_turns > 1 {
                conversation.affinity = rng.u64(..);
            }
            conversation.turns[0].question.insert(0, prefix);
            ready.push_back(conversation);
        }
        Self::of(ready, shape.requests, shape.vocabulary)
    }

    /// The prompts of a trace. Each of its ids becomes 512 tokens of its own, answers have
    /// `answer_tokens` tokens at most.
    pub fn trace(requests: &[TraceRequest], answer_tokens: usize, vocabulary: u32) -> Self {
        let ready = requests.iter().map(|request| {
            let mut left = usize::try_from(request.input_length).unwrap_or(usize::MAX);
            let question: Vec<Part> = request
                .hash_ids
                .iter()
                .map(|&seed| {
                    let tokens = left.min(TRACE_BLOCK_TOKENS);
                    left -= tokens;
                    Part { seed, tokens }
                })
                .collect();
            let answer = usize::try_from(request.output_length).unwrap_or(usize::MAX);
            Conversation {
                affinity: question.first().map_or(0, |part| part.seed),
                turns: VecDeque::from([Turn {
                    question,
                    answer_tokens: answer.clamp(1, answer_tokens.max(1)),
                }]),
                said: Vec::new(),
            }
        });
        Self::of(ready.collect(), requests.len(), vocabulary)
    }

    fn of(ready: VecDeque<Conversation>, requests: usize, vocabulary: u32) -> Self {
        Self {
            ready,
            requests,
            vocabulary: vocabulary.max(FIRST_TOKEN + 1),
        }
    }

    /// Requests of all conversations.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// The conversation whose turn it is; `None` if all that are left wait for answers.
    pub fn next_turn(&mut self) -> Option<Conversation> {
        self.ready.pop_front()
    }

    /// The next prompt of `conversation`, which with its answer has at most `longest` tokens.
    pub fn ask(&self, conversation: &mut Conversation, longest: usize) -> Option<Prompt> {
        let turn = conversation.turns.pop_front()?;
        for part in &turn.question {
            conversation.said.extend(self.tokens(part));
        }
        if conversation.said.is_empty() {
            conversation.said.push(FIRST_TOKEN);
        }
        let answer_tokens = turn
            .answer_tokens
            .clamp(1, longest.saturating_sub(1).max(1));
        let room = longest.saturating_sub(answer_tokens).max(1);
        let cut = conversation.said.len() > room;
        conversation.said.truncate(room);
        Some(Prompt {
            tokens: conversation.said.clone(),
            answer_tokens,
            cut,
        })
    }

    /// Lets `conversation` go on after `answer`, if it has more turns; without an answer, its
    /// other turns are lost. Returns how many.
    pub fn answered(&mut self, mut conversation: Conversation, answer: Option<&[u32]>) -> usize {
        let Some(answer) = answer else {
            return conversation.turns.len();
        };
        if !conversation.turns.is_empty() {
            conversation.said.extend(answer);
            self.ready.push_back(conversation);
        }
        0
    }

    fn tokens(&self, part: &Part) -> impl Iterator<Item = u32> {
        let choice = u64::from(self.vocabulary - FIRST_TOKEN);
        let seed = part.seed;
        (0..part.tokens as u64).map(move |i| {
            // Less than the vocabulary, which is a u32.
            FIRST_TOKEN + (splitmix(seed, i) % choice) as u32
        })
    }
}

impl Shape {
    fn turn(&self, rng: &mut Rng) -> Turn {
        let most = self.question_tokens.max(1);
        Turn {
            question: vec![Part {
                seed: rng.u64(..),
                tokens: rng.usize(most.div_ceil(2)..=most),
            }],
            answer_tokens: self.answer_tokens,
        }
    }
}

#[cfg(test)]
mod tests;
