//! Hello and welcome byte by byte; arbitrary bytes are read or refused, never a panic.

use proptest::prelude::*;

use super::*;

const MAGIC: [u8; 8] = *b"FKV-TCP\n";

#[test]
fn messages_have_the_documented_bytes() {
    let hello = Hello {
        magic: MAGIC,
        version: 2,
        block_bytes: 0x0010_0000,
        namespace: NamespaceId::from_u128(0x0102),
    };
    let mut expected = b"FKV-TCP\n\x02\0\0\0\0\0\x10\0\x02\x01".to_vec();
    expected.resize(HELLO_BYTES, 0);
    assert_eq!(hello.encode()[..], expected);
    assert_eq!(Hello::decode(&hello.encode(), &MAGIC), Ok(hello));

    let welcome = Welcome {
        magic: MAGIC,
        version: 2,
        refusal: Some(Refusal::Secret),
        block_bytes: 7,
        message_bytes: 5,
    };
    let mut expected = b"FKV-TCP\n\x02\0\x05\0\x07\0\0\0\x05".to_vec();
    expected.resize(WELCOME_BYTES, 0);
    assert_eq!(welcome.encode()[..], expected);
    assert_eq!(Welcome::decode(&welcome.encode(), &MAGIC), Ok(welcome));
}

#[test]
fn what_is_no_message_is_refused_by_name() {
    let http = *b"GET / HTTP/1.1\r\nHost: localhost\r";
    let error = Hello::decode(&http, &MAGIC).expect_err("no hello");
    assert!(error.to_string().starts_with("no hello"), "{error}");
    let mut bytes = [0; WELCOME_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[10] = 99;
    let error = Welcome::decode(&bytes, &MAGIC).expect_err("no such refusal");
    assert_eq!(error.to_string(), "welcome with the unknown refusal 99");
    bytes[10] = 0;
    bytes[17] = 2;
    let error = Welcome::decode(&bytes, &MAGIC).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "welcome with the unknown message length 512"
    );
}

#[test]
fn every_refusal_has_its_own_code_and_name() {
    for (place, refusal) in Refusal::ALL.into_iter().enumerate() {
        assert_eq!(Refusal::from_u16(place as u16 + 1), Some(refusal));
        let same = |other: &&Refusal| other.name() == refusal.name();
        assert_eq!(Refusal::ALL.iter().filter(same).count(), 1);
    }
    assert_eq!(Refusal::from_u16(0), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: [u8; HELLO_BYTES], magical: bool) {
        let mut bytes = bytes;
        if magical {
            bytes[..8].copy_from_slice(&MAGIC);
        }
        if let Ok(hello) = Hello::decode(&bytes, &MAGIC) {
            prop_assert_eq!(Hello::decode(&hello.encode(), &MAGIC), Ok(hello));
        }
        let welcome = take::<WELCOME_BYTES>(&bytes, 0);
        if let Ok(welcome) = Welcome::decode(&welcome, &MAGIC) {
            prop_assert_eq!(Welcome::decode(&welcome.encode(), &MAGIC), Ok(welcome));
        }
    }
}
