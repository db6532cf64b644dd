//! Tests of the codec: layouts, refusals, any bytes.

use flexkv_block::{Checksum, Generation, SlotId, Tier};
use proptest::prelude::*;

use super::*;

fn location() -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(7),
        generation: Generation::FIRST,
    }
}

fn header() -> FrameHeader {
    FrameHeader {
        key: BlockKey::from_u128(0x1122),
        location: location(),
        length: 4096,
        checksum: Checksum(0xfeed),
    }
}

fn request() -> Request {
    Request {
        kind: RequestKind::Fetch,
        id: 9,
        count: 3,
        released: 8,
        patience_ms: 1500,
    }
}

#[test]
fn layouts_are_as_documented() {
    let bytes = request().encode();
    assert_eq!(&bytes[..4], b"FKRQ");
    assert_eq!(bytes[4..12], [1, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(bytes[12..20], [3, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(bytes[20..32], [0xdc, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    let response = Response {
        held: true,
        oversized: false,
        id: 9,
        count: 3,
    }
    .encode();
    assert_eq!(&response[..4], b"FKRS");
    assert_eq!(response[4..16], [1, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0]);

    let found = Answer::Found(header()).encode();
    assert_eq!(found[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(found[8..], header().encode());
    assert_eq!(Answer::Stale.encode()[0], 2);
}

#[test]
fn what_is_encoded_decodes() {
    assert_eq!(Request::decode(&request().encode()), Ok(request()));
    let entry = Entry {
        location: location().to_word(),
        key: BlockKey::from_u128(5),
    };
    assert_eq!(Entry::decode(&entry.encode()), entry);
    assert_eq!(entry.location(), Some(location()));
    for (held, oversized) in [(false, false), (true, false), (false, true)] {
        let response = Response {
            held,
            oversized,
            id: 4,
            count: 2,
        };
        assert_eq!(Response::decode(&response.encode(), 4, 2), Ok(response));
    }
    for answer in [Answer::Found(header()), Answer::Stale] {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
}

#[test]
fn bad_messages_are_named() {
    fn check<T: std::fmt::Debug>(result: Result<T, WireError>, text: &str) {
        let error = result.expect_err(text).to_string();
        assert!(error.contains(text), "`{error}` does not say `{text}`");
    }
    let with = |change: fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        Request::decode(&request.encode())
    };
    check(with(|r| r.count = 0), "count 0");
    check(with(|r| r.count = MAX_COUNT + 1), "count 4097");
    check(with(|r| r.kind = RequestKind::Release), "count 3");
    let empty = |r: &mut Request| (r.kind, r.count) = (RequestKind::Report, 0);
    check(with(empty), "count 0");
    let report = with(|r| r.kind = RequestKind::Report).expect("a report");
    assert_eq!((report.kind, report.count), (RequestKind::Report, 3));
    check(with(|r| r.released = 10), "unexpected id 10");
    let mut bytes = request().encode();
    bytes[4] = 77;
    check(Request::decode(&bytes), "unknown kind 77");

    let response = Response {
        held: false,
        oversized: false,
        id: 9,
        count: 3,
    }
    .encode();
    check(Response::decode(&response, 8, 3), "unexpected id 9");
    check(Response::decode(&response, 9, 4), "count 3");
    check(Answer::decode(&[3; ANSWER_BYTES]), "unknown status 3");
    check(Answer::decode(&[1; ANSWER_BYTES]), "bad frame header");
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in any::<[u8; ANSWER_BYTES]>()) {
        fn head<const N: usize>(magic: &[u8], bytes: &[u8]) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[..N]);
            out[..magic.len()].copy_from_slice(magic);
            out
        }
        if let Ok(request) = Request::decode(&head(&REQUEST_MAGIC, &bytes)) {
            prop_assert!(request.count <= MAX_COUNT);
            prop_assert!(request.released <= request.id);
        }
        let _ = Response::decode(&head(&RESPONSE_MAGIC, &bytes), 1, 1);
        let _ = Answer::decode(&bytes);
        let _ = Entry::decode(&head(&[], &bytes)).location();
    }

    #[test]
    fn a_damaged_frame_header_is_never_taken(at in 8usize..ANSWER_BYTES, bit in 0u8..8) {
        let mut bytes = Answer::Found(header()).encode();
        bytes[at] ^= 1 << bit;
        prop_assert!(Answer::decode(&bytes).is_err());
    }
}
