//! Whole greetings: who is let in, who is not, and that no message can be changed or played again.

use super::*;

fn terms() -> Terms {
    Terms {
        magic: *b"FKV-TST\n",
        version: 2,
        block_bytes: 4096,
        namespace: NamespaceId::from_u128(0xfeed),
    }
}

fn credential(secret: &str, name: &str) -> Credential {
    Credential::new(secret.as_bytes(), name)
}

/// What both sides conclude.
type Outcome = (Result<String, GreetError>, Result<String, Option<Refusal>>);

/// Runs a greeting in which `tamper` may change each message, numbered from 0.
fn greet(reader: (&Credential, Terms), owner: (&Credential, Terms), tamper: Tamper<'_>) -> Outcome {
    let (asking, mut opening) = Asking::begin(reader.0, reader.1).expect("randomness");
    tamper(0, &mut opening);
    let (answering, mut reply) = match answer(owner, &opening) {
        Ok(answered) => answered,
        Err(Failed { refusal, bytes, .. }) => {
            return (confirm(asking, &bytes).map(|_| String::new()), Err(refusal));
        }
    };
    tamper(1, &mut reply);
    let (proving, mut confirmation) = match confirm(asking, &reply) {
        Ok(confirmed) => confirmed,
        Err(error) => return (Err(error), Err(None)),
    };
    tamper(2, &mut confirmation);
    let proven = match answering.confirmed(&confirmation) {
        Ok(proven) => proven,
        Err(failed) => {
            let bytes = failed.bytes.try_into().expect("as long as a verdict");
            return (proving.accepted(&bytes), Err(failed.refusal));
        }
    };
    let name = proven.reader().to_owned();
    let misfit = proven.misfit();
    let refused = misfit.as_ref().map(|(refusal, text)| (*refusal, &text[..]));
    let mut verdict = proven.verdict(refused);
    tamper(3, &mut verdict);
    let heard = proving.accepted(&verdict);
    (
        heard,
        misfit.map_or(Ok(name), |(refusal, _)| Err(Some(refusal))),
    )
}

const REPLY: usize = WELCOME_BYTES + PROOF_BYTES;

fn answer(
    (credential, terms): (&Credential, Terms),
    opening: &[u8; HELLO_BYTES + PROOF_BYTES],
) -> Result<(Answering, [u8; REPLY]), Failed> {
    let (hello, proof) = opening.split_first_chunk().expect("a hello");
    let proof = proof.try_into().expect("a proof");
    Answering::reply(credential, terms, hello, proof)
}

fn confirm(asking: Asking, reply: &[u8]) -> Result<(Proving, [u8; CONFIRM_BYTES]), GreetError> {
    let (welcome, rest) = reply.split_first_chunk().expect("a welcome");
    let follows = asking.follows(welcome)?;
    asking.confirm(welcome, &rest[..follows.min(rest.len())])
}

type Tamper<'a> = &'a dyn Fn(usize, &mut [u8]);

fn honest(_: usize, _: &mut [u8]) {}

fn refusal(heard: Result<String, GreetError>) -> Refusal {
    match heard {
        Err(GreetError::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn members_of_a_cluster_learn_each_others_names() {
    let (a, b) = (credential("s", "node-a"), credential("s", "node-b"));
    let (heard, seen) = greet((&a, terms()), (&b, terms()), &honest);
    assert_eq!(heard.as_deref(), Ok("node-b"));
    assert_eq!(seen.as_deref(), Ok("node-a"));
}

#[test]
fn long_and_strange_names_are_cut_and_escaped() {
    let long = "é".repeat(100);
    let (a, b) = (credential("s", &long), credential("s", "x\ny"));
    let (heard, seen) = greet((&a, terms()), (&b, terms()), &honest);
    assert_eq!(heard.as_deref(), Ok("x\\ny"));
    assert_eq!(seen, Ok("é".repeat(47)));
}

#[test]
fn a_reader_with_another_secret_is_refused_and_told() {
    let (a, b) = (credential("wrong", "a"), credential("s", "b"));
    let (heard, seen) = greet((&a, terms()), (&b, terms()), &honest);
    assert_eq!(refusal(heard), Refusal::Secret);
    assert_eq!(seen, Err(Some(Refusal::Secret)));
}

#[test]
fn an_owner_that_only_claims_to_know_the_secret_is_found_out() {
    let reader = credential("s", "a");
    let (asking, _) = Asking::begin(&reader, terms()).expect("randomness");
    // An owner of another cluster that takes every opening as good.
    let other = credential("other", "b");
    let (_, opening) = Asking::begin(&other, terms()).expect("randomness");
    let (_, reply) = answer((&other, terms()), &opening).expect("its own opening");
    let error = confirm(asking, &reply).err();
    assert_eq!(error, Some(GreetError::Impostor));
}

#[test]
fn a_recorded_greeting_cannot_be_played_again() {
    let (a, b) = (credential("s", "a"), credential("s", "b"));
    let (asking, opening) = Asking::begin(&a, terms()).expect("randomness");
    let (first, reply) = answer((&b, terms()), &opening).expect("good");
    let (_, confirmation) = confirm(asking, &reply).expect("good");
    assert!(first.confirmed(&confirmation).is_ok());

    let (again, second) = answer((&b, terms()), &opening).expect("looks good");
    assert_ne!(reply, second, "replies are new each time");
    let failed = again.confirmed(&confirmation).err().expect("not confirmed");
    assert_eq!(failed.refusal, Some(Refusal::Unproven));
}

#[test]
fn other_terms_are_refused_after_the_proof_and_another_version_before() {
    let (a, b) = (credential("s", "a"), credential("s", "b"));
    let namespace = Terms {
        namespace: NamespaceId::from_u128(1),
        ..terms()
    };
    let size = Terms {
        block_bytes: 1,
        ..terms()
    };
    let version = Terms {
        version: 77,
        ..terms()
    };
    for (other, expected) in [
        (namespace, Refusal::Namespace),
        (size, Refusal::BlockSize),
        (version, Refusal::Version),
    ] {
        let (heard, seen) = greet((&a, other), (&b, terms()), &honest);
        assert_eq!(refusal(heard), expected);
        assert_eq!(seen, Err(Some(expected)));
        let stranger = credential("wrong", "c");
        let (heard, _) = greet((&stranger, other), (&b, terms()), &honest);
        let told = if expected == Refusal::Version {
            Refusal::Version
        } else {
            Refusal::Secret
        };
        assert_eq!(refusal(heard), told, "strangers learn nothing else");
    }
}

#[test]
fn an_opening_for_another_protocol_is_none() {
    let (a, b) = (credential("s", "a"), credential("s", "b"));
    let other = Terms {
        magic: *b"FKV-ABC\n",
        ..terms()
    };
    let (heard, seen) = greet((&a, other), (&b, terms()), &honest);
    assert!(matches!(heard, Err(GreetError::Message(_))), "{heard:?}");
    assert_eq!(seen, Err(None));
}

/// Every single byte of every message.
#[test]
fn a_changed_bit_never_ends_in_a_connection_of_another_kind() {
    let (a, b) = (credential("s", "node-a"), credential("s", "node-b"));
    let lengths = [
        HELLO_BYTES + PROOF_BYTES,
        REPLY,
        CONFIRM_BYTES,
        VERDICT_BYTES,
    ];
    for (message, length) in lengths.into_iter().enumerate() {
        for at in 0..length {
            let flip = |number: usize, bytes: &mut [u8]| {
                if number == message {
                    bytes[at] ^= 0x40;
                }
            };
            let (heard, seen) = greet((&a, terms()), (&b, terms()), &flip);
            // Of a welcome before the proof only magic and refusal are looked at, and the length of
            // a message that does not follow.
            let unread = message == 1 && matches!(at, 8..=9 | 12..=16 | 18..WELCOME_BYTES);
            if unread {
                assert_eq!(heard.as_deref(), Ok("node-b"), "byte {at}");
                assert_eq!(seen.as_deref(), Ok("node-a"), "byte {at}");
                continue;
            }
            assert!(heard.is_err(), "byte {at} of message {message}: {heard:?}");
            if message < 3 {
                assert!(seen.is_err(), "byte {at} of message {message}: {seen:?}");
            }
        }
    }
}

#[test]
fn secrets_do_not_show() {
    let shown = format!("{:?}", credential("hunter2", "a"));
    assert_eq!(shown, "Credential(a, ..)");
}
