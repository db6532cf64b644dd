//! How a reader and an owner greet each other: messages of any bytes are refused in words, and a
//! greeting of which a proof, a confirmation or a verdict was changed on its way never succeeds.
//!
//! Knows nothing of what carries the messages.

use flexkv_block::NamespaceId;
use flexkv_handshake::{
    Answering, Asking, Credential, HELLO_BYTES, Hello, Terms, WELCOME_BYTES, Welcome,
};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "greeting",
    run,
    seeds,
};

const MAGIC: [u8; 8] = *b"FKVFUZZ\0";
const TERMS: Terms = Terms {
    magic: MAGIC,
    version: 1,
    block_bytes: 4096,
    namespace: NamespaceId::from_u128(77),
};

fn run(data: &[u8]) {
    messages(data);
    let credential = Credential::new(b"a secret of the cluster", "node-a");
    strangers(&credential, data);
    changed(&credential, data);
}

/// A message that is accepted is written again as it was understood.
fn messages(data: &[u8]) {
    if let Some(Ok(hello)) = data.first_chunk().map(|bytes| Hello::decode(bytes, &MAGIC)) {
        assert_eq!(Hello::decode(&hello.encode(), &MAGIC), Ok(hello));
    }
    if let Some(Ok(welcome)) = data
        .first_chunk()
        .map(|bytes| Welcome::decode(bytes, &MAGIC))
    {
        assert_eq!(Welcome::decode(&welcome.encode(), &MAGIC), Ok(welcome));
    }
}

/// Both sides hear somebody who does not know the secret.
fn strangers(credential: &Credential, data: &[u8]) {
    if let Some((hello, rest)) = data.split_first_chunk::<HELLO_BYTES>() {
        let refused = match Answering::hear(&TERMS, hello) {
            Ok(()) => rest
                .first_chunk()
                .and_then(|proof| Answering::reply(credential, TERMS, hello, proof).err()),
            Err(failed) => Some(failed),
        };
        assert!(refused.is_none_or(|failed| !failed.message.is_empty()));
    }
    if let Some((welcome, rest)) = data.split_first_chunk::<WELCOME_BYTES>() {
        let Ok((asking, _)) = Asking::begin(credential, TERMS) else {
            return;
        };
        let follows = asking.follows(welcome);
        let rest = follows.map(|bytes| rest.get(..bytes));
        if let Ok(Some(rest)) = rest {
            let error = asking.confirm(welcome, rest).err();
            assert!(error.is_some_and(|error| !error.to_string().is_empty()));
        }
    }
}

/// A greeting between two that know the secret. The first byte tells which message is changed, two more
/// where, and the last how; zeros change nothing.
fn changed(credential: &Credential, data: &[u8]) {
    let [which, low, high, flip] = data.first_chunk().copied().unwrap_or_default();
    let at = usize::from(u16::from_le_bytes([low, high]));
    let change = |number: u8, bytes: &mut [u8]| {
        let len = bytes.len();
        if number == which && len > 0 {
            bytes[at % len] ^= flip;
        }
    };
    let expected = flip == 0 || which > 2;
    assert_eq!(
        greet(credential, &change),
        expected,
        "{which} {at} {flip:#x}"
    );
}

/// Whether both sides are content.
fn greet(credential: &Credential, change: &impl Fn(u8, &mut [u8])) -> bool {
    let Ok((asking, opening)) = Asking::begin(credential, TERMS) else {
        return false;
    };
    let Some((hello, proof)) = opening.split_first_chunk::<HELLO_BYTES>() else {
        return false;
    };
    let Some(mut proof) = proof.first_chunk().copied() else {
        return false;
    };
    change(0, &mut proof);
    let Ok((answering, reply)) = Answering::reply(credential, TERMS, hello, &proof) else {
        return false;
    };
    let Some((welcome, rest)) = reply.split_first_chunk::<WELCOME_BYTES>() else {
        return false;
    };
    let Ok((proving, mut confirm)) = asking.confirm(welcome, rest) else {
        return false;
    };
    change(1, &mut confirm);
    let Ok(proven) = answering.confirmed(&confirm) else {
        return false;
    };
    assert_eq!((proven.reader(), proven.misfit()), ("node-a", None));
    let mut verdict = proven.verdict(None);
    change(2, &mut verdict);
    proving
        .accepted(&verdict)
        .is_ok_and(|owner| owner == "node-a")
}

fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        magic: MAGIC,
        version: 1,
        block_bytes: 4096,
        namespace: NamespaceId::from_u128(77),
    };
    let welcome = |refusal, message_bytes| Welcome {
        magic: MAGIC,
        version: 1,
        refusal,
        block_bytes: 0,
        message_bytes,
    };
    let mut hello = hello.encode().to_vec();
    hello.resize(HELLO_BYTES + 256, 3);
    let mut seeds = vec![hello, vec![0; 4]];
    for (refusal, bytes) in [(None, 0), (Some(flexkv_handshake::Refusal::Secret), 20)] {
        let mut bytes = welcome(refusal, bytes).encode().to_vec();
        bytes.resize(WELCOME_BYTES + 256, b'x');
        seeds.push(bytes);
    }
    seeds.extend((0..3).map(|which| vec![which, 40, 0, 1]));
    seeds
}
