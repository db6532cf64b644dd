//! Tests of reading streamed completions, in pieces as networks deliver them.

use super::*;

const ANSWER: &str = concat!(
    ": a comment\n\n",
    "data: {\"choices\":[{\"text\":\"\",\"token_ids\":[]}]}\n\n",
    "data: {\"choices\":[{\"text\":\" a b\",\"token_ids\":[5,6]}]}\r\n\r\n",
    "data: {\"choices\":[{\"text\":\" c\",\"token_ids\":[7]}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,",
    "\"prompt_tokens_details\":{\"cached_tokens\":4}},",
    "\"kv_transfer_params\":{\"flexkv_hit_tokens_local\":1,\"flexkv_hit_tokens_remote\":2}}\n\n",
    "data: [DONE]\n\n"
);

#[test]
fn pieces_of_any_size_give_the_same_answer() {
    for size in [1, 2, 7, 100, 10_000] {
        let mut stream = Stream::default();
        for piece in ANSWER.as_bytes().chunks(size) {
            stream.push(piece).unwrap();
        }
        let expect = Completion {
            tokens: vec![5, 6, 7],
            prompt_tokens: Some(9),
            answer_tokens: Some(3),
            cached_tokens: Some(4),
            node_tokens: Some(3),
        };
        assert_eq!(stream.finish(), Ok(expect));
    }
}

#[test]
fn an_answer_begins_with_its_first_token() {
    let mut stream = Stream::default();
    let mut events = ANSWER.split_inclusive("\n\n");
    for (event, begun) in [(0, false), (1, false), (2, true)] {
        stream.push(events.next().unwrap().as_bytes()).unwrap();
        assert_eq!(stream.begun(), begun, "after event {event}");
    }
}

#[test]
fn servers_may_tell_less() {
    let mut stream = Stream::default();
    let text = b"data: {\"choices\":[{\"text\":\"a\"}],\"usage\":null}\ndata:[DONE]\n";
    stream.push(text).unwrap();
    assert_eq!(stream.finish(), Ok(Completion::default()));
}

#[test]
fn what_is_no_answer_is_an_error() {
    let finished = |text: &str| {
        let mut stream = Stream::default();
        stream.push(text.as_bytes())?;
        stream.finish()
    };
    for (text, part) in [
        ("", "breaks off"),
        ("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "breaks off"),
        ("data: [DONE]\n", "empty"),
        ("data: {nonsense\n", "not what was expected"),
        (
            "data: {\"error\":{\"message\":\"out of luck\",\"code\":500}}\n",
            "out of luck",
        ),
        ("data: {\"error\":\"bad\"}\n", "\"bad\""),
    ] {
        let error = finished(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    let mut endless = Stream::default();
    let error = endless.push(&vec![b'x'; MAX_EVENT_BYTES + 1]).unwrap_err();
    assert!(error.contains("more than"), "{error}");
}
