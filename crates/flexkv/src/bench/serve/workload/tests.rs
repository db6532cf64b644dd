//! Tests of workloads: what prompts share, how conversations go on, and that a seed repeats them.

use super::*;

const SHAPE: Shape = Shape {
    requests: 50,
    prefixes: 2,
    prefix_tokens: 100,
    max_turns: 4,
    question_tokens: 20,
    answer_tokens: 5,
    vocabulary: 500,
};

/// All prompts, with the same tokens for every answer.
fn prompts(mut workload: Workload, longest: usize) -> Vec<Prompt> {
    let mut prompts = Vec::new();
    while let Some(mut conversation) = workload.next_turn() {
        let prompt = workload.ask(&mut conversation, longest).unwrap();
        let answer = vec![7; prompt.answer_tokens];
        prompts.push(prompt);
        assert_eq!(workload.answered(conversation, Some(&answer)), 0);
    }
    prompts
}

#[test]
fn a_seed_repeats_a_workload() {
    let of = |seed| prompts(Workload::chats(&SHAPE, seed), usize::MAX);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert_eq!(of(1).len(), SHAPE.requests);
    let in_range = |token: &u32| *token == 7 || (16..500).contains(token);
    assert!(
        of(1)
            .iter()
            .all(|prompt| prompt.tokens.iter().all(in_range))
    );
}

#[test]
fn prompts_share_the_prefixes() {
    let mut beginnings: Vec<_> = prompts(Workload::prefixes(&SHAPE, 3), usize::MAX)
        .into_iter()
        .map(|prompt| {
            assert!((110..=120).contains(&prompt.tokens.len()));
            prompt.tokens[..100].to_vec()
        })
        .collect();
    beginnings.sort();
    beginnings.dedup();
    assert_eq!(beginnings.len(), 2);
}

#[test]
fn a_turn_repeats_what_was_said_and_what_was_answered() {
    let mut workload = Workload::chats(&SHAPE, 4);
    let mut longest = 0;
    while let Some(mut conversation) = workload.next_turn() {
        let before = conversation.said.clone();
        let prompt = workload.ask(&mut conversation, usize::MAX).unwrap();
        assert!(prompt.tokens.starts_with(&before));
        assert!(prompt.tokens.len() > before.len());
        longest = longest.max(prompt.tokens.len());
        workload.answered(conversation, Some(&[7, 8, 9]));
    }
    assert!(longest > 130, "no conversation has a second turn");
}

#[test]
fn prompts_fit_the_model() {
    let prompts = prompts(Workload::chats(&SHAPE, 1), 110);
    assert!(prompts.iter().any(|prompt| prompt.cut));
    for prompt in prompts {
        assert!(prompt.tokens.len() + prompt.answer_tokens <= 110);
    }
}

#[test]
fn without_an_answer_a_conversation_ends() {
    let mut workload = Workload::chats(&SHAPE, 1);
    let (mut asked, mut lost) = (0, 0);
    while let Some(mut conversation) = workload.next_turn() {
        workload.ask(&mut conversation, usize::MAX).unwrap();
        asked += 1;
        lost += workload.answered(conversation, None);
    }
    assert!(lost > 0);
    assert_eq!(asked + lost, SHAPE.requests);
}

#[test]
fn equal_ids_of_a_trace_are_equal_tokens() {
    let request = |input_length, hash_ids: &[u64]| TraceRequest {
        timestamp: 0,
        input_length,
        output_length: 300,
        hash_ids: hash_ids.to_vec(),
    };
    let trace = [
        request(1000, &[1, 2]),
        request(600, &[1, 3]),
        request(0, &[]),
    ];
    let prompts = prompts(Workload::trace(&trace, 8, 1000), usize::MAX);
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    assert_eq!(lengths, [1000, 600, 1]);
    assert_eq!(prompts[0].tokens[..512], prompts[1].tokens[..512]);
    assert_ne!(prompts[0].tokens[512..600], prompts[1].tokens[512..600]);
    assert!(prompts.iter().all(|prompt| prompt.answer_tokens == 8));
}
