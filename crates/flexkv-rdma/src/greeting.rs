//! The greeting of reader and owner over TCP, and what they tell each other after it.
//!
//! Nothing of the owner's memory is said before the reader has proved that it knows the cluster's
//! secret. Knows no device.

use std::io;

use flexkv_block::NamespaceId;
use flexkv_handshake::{
    Answering, Asking, CONFIRM_BYTES, Credential, Failed, GreetError, HELLO_BYTES, PROOF_BYTES,
    Refusal, Refusals, Terms, VERDICT_BYTES, WELCOME_BYTES,
};
use flexkv_ports::{Suspect, SuspectSender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wire::{
    ANSWER_BYTES, Answer, Introduction, MAGIC, OFFER_BYTES, OwnersArena, Side, VERSION, WireError,
};

/// Why reader and owner do not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetingError {
    #[error(transparent)]
    Greet(#[from] GreetError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What both sides must agree on.
pub(crate) fn terms(namespace: NamespaceId, block_bytes: usize) -> Terms {
    Terms {
        magic: MAGIC,
        version: VERSION,
        block_bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
        namespace,
    }
}

/// The reader's greeting; gives the name that the owner goes by.
pub(crate) async fn ask(
    stream: &mut TcpStream,
    credential: &Credential,
    terms: Terms,
) -> Result<String, GreetingError> {
    let (asking, opening) = Asking::begin(credential, terms)?;
    stream.write_all(&opening).await?;
    let welcome = receive::<WELCOME_BYTES>(stream).await?;
    let mut rest = vec![0; asking.follows(&welcome)?];
    stream.read_exact(&mut rest).await?;
    let (proving, confirm) = asking.confirm(&welcome, &rest)?;
    stream.write_all(&confirm).await?;
    let verdict = receive::<VERDICT_BYTES>(stream).await?;
    Ok(proving.accepted(&verdict)?)
}

/// The reader's introduction; gives the owner's, and its arena.
pub(crate) async fn introduce(
    stream: &mut TcpStream,
    ours: &Introduction,
) -> Result<(Introduction, OwnersArena), GreetingError> {
    stream.write_all(&ours.encode(Side::Reader)).await?;
    let answer = Answer::decode(&receive::<ANSWER_BYTES>(stream).await?)?;
    let mut chunks = vec![0; answer.follows()];
    stream.read_exact(&mut chunks).await?;
    Ok((answer.introduction, answer.arena(&chunks)?))
}

/// The owner's greeting; gives the name that the reader goes by. Refusals are told to the reader and
/// counted; `full`, if given, is why there is no room for one more.
pub(crate) async fn answer(
    stream: &mut TcpStream,
    credential: &Credential,
    terms: Terms,
    full: Option<String>,
    refusals: &Refusals,
) -> Result<String, GreetingError> {
    let hello = receive::<HELLO_BYTES>(stream).await?;
    if let Err(failed) = Answering::hear(&terms, &hello) {
        return Err(turn_away(stream, failed, refusals).await);
    }
    let proof = receive::<PROOF_BYTES>(stream).await?;
    let (answering, reply) = match Answering::reply(credential, terms, &hello, &proof) {
        Ok(answered) => answered,
        Err(failed) => return Err(turn_away(stream, failed, refusals).await),
    };
    stream.write_all(&reply).await?;
    let confirm = receive::<CONFIRM_BYTES>(stream).await?;
    let proven = match answering.confirmed(&confirm) {
        Ok(proven) => proven,
        Err(failed) => return Err(turn_away(stream, failed, refusals).await),
    };
    let reader = proven.reader().to_owned();
    let full = full.map(|text| (Refusal::TooManyConnections, text));
    if let Some((refusal, message)) = proven.misfit().or(full) {
        let bytes = proven.verdict(Some((refusal, &message))).to_vec();
        let refusal = Some(refusal);
        let failed = Failed {
            refusal,
            message,
            bytes,
        };
        return Err(turn_away(stream, failed, refusals).await);
    }
    stream.write_all(&proven.verdict(None)).await?;
    Ok(reader)
}

/// The introduction of a reader that has been let in.
pub(crate) async fn hear(stream: &mut TcpStream) -> Result<Introduction, GreetingError> {
    let offer = receive::<OFFER_BYTES>(stream).await?;
    Ok(Introduction::decode(&offer, Side::Reader)?)
}

/// Counts the refusal and tells the reader; gives an error to end the connection with.
async fn turn_away(stream: &mut TcpStream, failed: Failed, refusals: &Refusals) -> GreetingError {
    if let Some(refusal) = failed.refusal {
        refusals.count(refusal);
    }
    match stream.write_all(&failed.bytes).await {
        Ok(()) => io::Error::new(io::ErrorKind::PermissionDenied, failed.message).into(),
        Err(error) => error.into(),
    }
}

/// Passes on what the reader reports, until it has gone, or says something else.
pub(crate) async fn heed(stream: &mut TcpStream, suspects: Option<&SuspectSender>) {
    while let Ok(bytes) = receive::<{ Suspect::BYTES }>(stream).await {
        let Some(suspect) = Suspect::decode(&bytes) else {
            return;
        };
        if let Some(suspects) = suspects {
            suspects.tell(suspect);
        }
    }
}

/// Waits until the owner has gone, or says what it has no right to say.
pub(crate) async fn ended(stream: &TcpStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

async fn receive<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
