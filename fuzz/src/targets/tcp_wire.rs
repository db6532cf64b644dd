//! Messages of the greeting and of the TCP transport: every one that is accepted says the same when it is written and
//! read again.
//!
//! Knows nothing of connections.

use flexkv_block::{Checksum, FRAME_HEADER_BYTES, NamespaceId};
use flexkv_handshake::{Hello, Welcome};
use flexkv_tcp::wire::{
    ANSWER_BYTES, Answer, Entry, MAGIC, Request, RequestKind, Response, VERSION,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "tcp_wire",
    run,
    seeds,
};

fn run(data: &[u8]) {
    again(data, |bytes| Hello::decode(bytes, &MAGIC), Hello::encode);
    again(
        data,
        |bytes| Welcome::decode(bytes, &MAGIC),
        Welcome::encode,
    );
    again(data, Request::decode, Request::encode);
    again(
        data,
        |bytes| Ok::<_, ()>(Entry::decode(bytes)),
        Entry::encode,
    );
    let word = |at: usize| {
        data.get(at..)?
            .first_chunk()
            .copied()
            .map(u32::from_le_bytes)
    };
    if let (Some(id), Some(count)) = (word(8), word(12)) {
        again(
            data,
            |bytes| Response::decode(bytes, id, count),
            Response::encode,
        );
    }
    again(data, Answer::decode, Answer::encode);
    // No fuzzer guesses a checksum: the frame header of an answer gets the right one.
    if let Some(answer) = data.first_chunk::<ANSWER_BYTES>() {
        let mut answer = *answer;
        let header = ANSWER_BYTES - FRAME_HEADER_BYTES;
        let sum = Checksum::of(&answer[header..ANSWER_BYTES - 8])
            .0
            .to_le_bytes();
        answer[ANSWER_BYTES - 8..].copy_from_slice(&sum);
        again(&answer, Answer::decode, Answer::encode);
    }
}

fn again<const N: usize, T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    data: &[u8],
    decode: impl Fn(&[u8; N]) -> Result<T, E>,
    encode: impl Fn(&T) -> [u8; N],
) {
    let Some(Ok(message)) = data.first_chunk().map(&decode) else {
        return;
    };
    let read = decode(&encode(&message)).map_err(|error| format!("{error:?}"));
    assert_eq!(read, Ok(message));
}

fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        magic: MAGIC,
        version: VERSION,
        block_bytes: 4096,
        namespace: NamespaceId::from_u128(77),
    };
    let welcome = Welcome {
        magic: MAGIC,
        version: VERSION,
        refusal: None,
        block_bytes: 4096,
        message_bytes: 0,
    };
    let request = Request {
        kind: RequestKind::Fetch,
        id: 5,
        count: 2,
        released: 4,
        patience_ms: 100,
    };
    let report = Request {
        kind: RequestKind::Report,
        ..request
    };
    let response = Response {
        held: true,
        oversized: false,
        id: 5,
        count: 2,
    };
    let mut found = vec![1, 0, 0, 0, 0, 0, 0, 0];
    found.extend((super::block_frame::TARGET.seeds)().concat());
    vec![
        hello.encode().to_vec(),
        welcome.encode().to_vec(),
        request.encode().to_vec(),
        report.encode().to_vec(),
        response.encode().to_vec(),
        Answer::Stale.encode().to_vec(),
        found,
    ]
}
