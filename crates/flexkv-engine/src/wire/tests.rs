//! Every message survives the wire; every malformed byte is named; nothing panics.

use std::time::Duration;

use flexkv_block::{Checksum, NamespaceId};
use flexkv_ports::{CacheError, Filled, LoadLimits, PrefixHit, Removed, Ticket};
use proptest::prelude::*;

use super::*;

const TICKET: Ticket = Ticket(0x0102_0304_0506_0708);

fn keys(count: u128) -> Vec<BlockKey> {
    (0..count)
        .map(|n| BlockKey::from_u128(n << 90 | 3))
        .collect()
}

fn requests() -> Vec<Request<'static>> {
    let filled = |index| Filled {
        index,
        checksum: Checksum(9),
    };
    vec![
        Request::Match {
            keys: keys(3).into(),
        },
        Request::Match {
            keys: keys(0).into(),
        },
        Request::Load {
            ticket: TICKET,
            blocks: 7,
            limits: Duration::from_micros(1_500).into(),
        },
        Request::Load {
            ticket: TICKET,
            blocks: 8,
            limits: LoadLimits {
                deadline: Duration::from_secs(2),
                recompute: Some(Duration::from_micros(700)),
            },
        },
        Request::Poll { ticket: TICKET },
        Request::Wait { ticket: TICKET },
        Request::Store {
            keys: keys(4).into(),
            first: 2,
        },
        Request::Commit {
            ticket: TICKET,
            filled: vec![filled(0), filled(5)].into(),
        },
        Request::Release { ticket: TICKET },
        Request::Watch,
    ]
}

fn replies() -> Vec<Reply> {
    let block = |n| PlacedBlock {
        key: BlockKey::from_u128(n),
        checksum: Checksum(1),
        offset: 4096,
    };
    let reason = || "why".to_owned();
    vec![
        Reply::Matched(PrefixHit {
            ticket: TICKET,
            blocks: 9,
            local: 4,
        }),
        Reply::Done,
        Reply::Pending,
        Reply::Loaded {
            local: 1,
            remote: 2,
            blocks: (0..3).map(block).collect(),
        },
        Reply::Removed(Removed {
            keys: keys(2),
            lost: 3,
        }),
        Reply::Granted {
            ticket: TICKET,
            slots: vec![Some(0), None, Some(8192)],
        },
        Reply::Failed(CacheError::Gone { reason: reason() }),
        Reply::Failed(CacheError::Invalid { reason: reason() }),
        Reply::Failed(CacheError::UnknownTicket { ticket: TICKET }),
    ]
}

/// Splits a frame and checks that header and length agree.
#[track_caller]
fn split(frame: &[u8], id: u32) -> (u16, &[u8]) {
    let (head, body) = frame.split_first_chunk().expect("a header");
    let header = Header::decode(head, MAX_BODY_BYTES).expect("a good header");
    assert_eq!((header.id, header.body), (id, body.len()));
    (header.kind, body)
}

#[test]
fn requests_survive_the_wire() {
    for request in requests() {
        let mut frame = Vec::new();
        request.encode(77, &mut frame);
        let (kind, body) = split(&frame, 77);
        assert_eq!(Request::decode(kind, body), Ok(request));
    }
}

#[test]
fn replies_survive_the_wire() {
    for reply in replies() {
        let mut frame = Vec::new();
        reply.encode(78, &mut frame);
        let (kind, body) = split(&frame, 78);
        assert_eq!(Reply::decode(kind, body), Ok(reply));
    }
}

#[test]
fn greetings_survive_the_wire() {
    let mut frame = Vec::new();
    let hello = Hello {
        version: 3,
        pid: 44,
    };
    hello.encode(&mut frame);
    let (kind, body) = split(&frame, 0);
    assert_eq!(body.len(), Hello::BODY_BYTES);
    assert_eq!(Hello::decode(kind, body), Ok(hello));

    let welcome = Welcome {
        version: 1,
        pid: 2,
        namespace: NamespaceId::from_u128(5 << 100),
        block_bytes: 6,
        arena_bytes: 7 << 33,
        max_keys: 8,
    };
    frame.clear();
    welcome.encode(&mut frame);
    let (kind, body) = split(&frame, 0);
    assert_eq!(body.len(), Welcome::BODY_BYTES);
    assert_eq!(Welcome::decode(kind, body), Ok(welcome));

    let refused = Refused {
        code: RefusalCode::Busy,
        text: "full".to_owned(),
    };
    frame.clear();
    refused.encode(&mut frame);
    let (kind, body) = split(&frame, 0);
    assert_eq!(kind, Refused::KIND);
    assert_eq!(Refused::decode(body), Ok(refused));
}

/// The bytes that `docs/protocol.md` shows; a change here is a new version of the protocol.
#[test]
fn frames_have_the_documented_bytes() {
    let mut frame = Vec::new();
    Hello {
        version: 1,
        pid: 0x0a0b,
    }
    .encode(&mut frame);
    assert_eq!(
        frame,
        [
            20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'F', b'K', b'V', b'L', 1, 0, 0, 0, 0x0b, 0x0a, 0,
            0
        ]
    );
    frame.clear();
    let request = Request::Poll { ticket: TICKET };
    request.encode(0x1122_3344, &mut frame);
    assert_eq!(
        frame,
        [
            16, 0, 0, 0, 0x12, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, 8, 7, 6, 5, 4, 3, 2, 1
        ]
    );
}

/// Frames of one byte less or more than the message's are refused, and name the message.
#[test]
fn bodies_of_another_length_are_refused() {
    for request in requests() {
        let mut frame = Vec::new();
        request.encode(1, &mut frame);
        let (kind, body) = split(&frame, 1);
        for cut in 0..body.len() {
            let error = Request::decode(kind, &body[..cut]).expect_err("cut body");
            assert!(error.to_string().starts_with(request.name()), "{error}");
        }
        let error = Request::decode(kind, &[body, &[0]].concat());
        let message = request.name();
        assert_eq!(error, Err(WireError::Trailing { message, bytes: 1 }));
    }
    for reply in replies() {
        let mut frame = Vec::new();
        reply.encode(1, &mut frame);
        let (kind, body) = split(&frame, 1);
        for cut in 0..body.len() {
            let error = Reply::decode(kind, &body[..cut]).expect_err("cut body");
            assert!(error.to_string().starts_with(reply.name()), "{error}");
        }
        let error = Reply::decode(kind, &[body, &[0]].concat());
        let message = reply.name();
        assert_eq!(error, Err(WireError::Trailing { message, bytes: 1 }));
    }
}

#[track_caller]
fn check(result: Result<impl std::fmt::Debug, WireError>, named: &str) {
    let error = result.expect_err("malformed").to_string();
    assert!(error.contains(named), "`{error}` does not name `{named}`");
}

#[test]
fn malformed_fields_are_named() {
    let header = |bytes: [u8; 12]| Header::decode(&bytes, 100);
    check(header([7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "length 7");
    check(
        header([109, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        "109 bytes is over",
    );
    check(header([255; 12]), "over the limit of 108");
    check(
        header([8, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
        "reserved field is 0x200",
    );
    assert!(header([108, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok());

    check(Request::decode(0x0018, &[]), "0x0018 is not a request");
    check(Request::decode(0x8010, &[]), "not a request");
    check(Reply::decode(0x0010, &[]), "not a reply");
    check(Hello::decode(0x0010, &[]), "Hello, which comes first");
    check(Welcome::decode(0x8010, &[]), "Welcome, which answers Hello");
    check(
        Hello::decode(Hello::KIND, b"FKVC\x01\0\0\0\0\0\0\0"),
        "magic",
    );
    check(
        Hello::decode(Hello::KIND, b"FKVL\x01\0\0\x09\0\0\0\0"),
        "reserved",
    );
    check(
        Refused::decode(&[9, 0, 0, 0]),
        "`code` has the unknown value 9",
    );
    check(Refused::decode(&[1, 0, 1, 0, 0xff]), "not UTF-8");
    check(
        Reply::decode(0x801f, &[0; 12]),
        "`code` has the unknown value 0",
    );

    let count = (MAX_ITEMS as u32 + 1).to_le_bytes();
    check(Request::decode(0x0010, &count), "1048577 items in `keys`");
}

#[test]
fn the_time_to_compute_a_block_is_told_in_what_there_is_room_for() {
    let told = |recompute| {
        let limits = LoadLimits {
            deadline: Duration::ZERO,
            recompute,
        };
        let (ticket, blocks) = (TICKET, 1);
        let request = Request::Load {
            ticket,
            blocks,
            limits,
        };
        let mut frame = Vec::new();
        request.encode(1, &mut frame);
        match Request::decode(0x0011, &frame[12..]) {
            Ok(Request::Load { limits, .. }) => limits.recompute,
            other => panic!("{other:?}"),
        }
    };
    let most = Duration::from_micros(u32::MAX.into());
    assert_eq!(told(None), None);
    assert_eq!(
        told(Some(Duration::from_nanos(1))),
        Some(Duration::from_micros(1))
    );
    assert_eq!(told(Some(Duration::MAX)), Some(most));
}

#[test]
fn a_count_without_its_items_takes_no_memory() {
    let count = (MAX_ITEMS as u32).to_le_bytes();
    check(Request::decode(0x0010, &count), "ends inside `keys`");
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "ä".repeat(MAX_TEXT_BYTES);
    let mut frame = Vec::new();
    let code = RefusalCode::Protocol;
    Refused { code, text }.encode(&mut frame);
    let (_, body) = split(&frame, 0);
    let text = Refused::decode(body).expect("UTF-8").text;
    assert_eq!(text, "ä".repeat(MAX_TEXT_BYTES / 2));
}

#[test]
fn the_largest_messages_fit() {
    let block = PlacedBlock {
        key: BlockKey::from_u128(1),
        checksum: Checksum(2),
        offset: 3,
    };
    let reply = Reply::Loaded {
        local: MAX_ITEMS,
        remote: 0,
        blocks: vec![block; MAX_ITEMS],
    };
    let mut frame = Vec::new();
    reply.encode(1, &mut frame);
    assert_eq!(frame.len(), HEADER_BYTES + MAX_BODY_BYTES);
    let (kind, body) = split(&frame, 1);
    assert!(Reply::decode(kind, body) == Ok(reply));
}

proptest! {
    /// What decodes, encodes to the same bytes; the rest is an error, never a panic.
    #[test]
    fn any_bytes_decode_or_name_their_fault(
        head in any::<[u8; HEADER_BYTES]>(),
        kind in prop_oneof![0u16..0x20, 0x8000u16..0x8020, any::<u16>()],
        body in prop::collection::vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..120),
    ) {
        let _ = Header::decode(&head, MAX_BODY_BYTES);
        let mut frame = Vec::new();
        match Request::decode(kind, &body) {
            Ok(request) => request.encode(0, &mut frame),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        match Reply::decode(kind, &body) {
            // Fields that a code does not use are not kept.
            Ok(Reply::Failed(_)) => {}
            Ok(reply) => reply.encode(0, &mut frame),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        if let Ok(hello) = Hello::decode(kind, &body) {
            hello.encode(&mut frame);
        }
        if let Ok(welcome) = Welcome::decode(kind, &body) {
            welcome.encode(&mut frame);
        }
        let _ = Refused::decode(&body);
        if !frame.is_empty() {
            prop_assert_eq!(&frame[HEADER_BYTES..], &body[..]);
        }
    }

    /// A good frame with one byte changed is another good frame or a named fault.
    #[test]
    fn one_changed_byte_never_panics(
        which in 0usize..8, at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        for request in [true, false] {
            let mut frame = Vec::new();
            if request {
                requests()[which].encode(5, &mut frame);
            } else {
                replies()[which].encode(5, &mut frame);
            }
            let at = at.index(frame.len());
            frame[at] = to;
            let (head, body) = frame.split_first_chunk().expect("a header");
            if let Ok(header) = Header::decode(head, body.len()) {
                let body = &body[..header.body];
                let _ = Request::decode(header.kind, body);
                let _ = Reply::decode(header.kind, body);
            }
        }
    }
}
