//! The greeting's steps on both sides. Each step takes a message of fixed size and gives the next.
//!
//! ```text
//! reader                            owner
//! hello, proof                 ->
//!                              <-   welcome, proof (or why not)
//! confirmation of this proof   ->
//!                              <-   verdict: welcome (or why not), sealed
//! ```
//! Before the confirmation nothing depends on namespace or block size, and nothing is given away:
//! whoever plays a first message again cannot confirm the answer, which is new each time.

use flexkv_block::NamespaceId;
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState, TransportState};
use thiserror::Error;

use crate::Credential;
use crate::credential::IDENTITY_BYTES;
use crate::message::{
    HELLO_BYTES, Hello, MAX_MESSAGE_BYTES, MessageError, Refusal, WELCOME_BYTES, Welcome,
};

/// The Noise protocol: no static keys, the cluster's secret as pre-shared key in the first message.
const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
/// Bytes that an encrypted message has more than its content.
const TAG_BYTES: usize = 16;
/// Bytes of an ephemeral public key.
const PUBLIC_BYTES: usize = 32;
/// Bytes of an identity with its length.
const NAME_BYTES: usize = IDENTITY_BYTES + 2;
/// Bytes of a proof, which follows a hello and a welcome that accepts.
pub const PROOF_BYTES: usize = PUBLIC_BYTES + NAME_BYTES + TAG_BYTES;
/// Bytes of a welcome with the longest message.
const SAID_BYTES: usize = WELCOME_BYTES + MAX_MESSAGE_BYTES;

/// Bytes of the reader's second message.
pub const CONFIRM_BYTES: usize = TAG_BYTES;
/// Bytes of the owner's second message.
pub const VERDICT_BYTES: usize = SAID_BYTES + TAG_BYTES;

/// What is to be agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// First bytes of the protocol that will be spoken.
    pub magic: [u8; 8],
    /// Its version.
    pub version: u16,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Whose blocks.
    pub namespace: NamespaceId,
}

/// Why a reader has no connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GreetError {
    /// The owner does not speak the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The owner cannot prove that it knows the cluster's secret.
    #[error("the owner does not know the cluster's secret")]
    Impostor,
    /// The system gave no randomness.
    #[error("no handshake can be made: {0}")]
    Crypto(String),
    /// The owner refuses; its words.
    #[error("the owner refuses: {message}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// Its words.
        message: String,
    },
}

/// Why an owner turns a reader away, and what to tell it.
#[derive(Debug)]
pub struct Failed {
    /// Why; `None` if the reader speaks another protocol altogether.
    pub refusal: Option<Refusal>,
    /// What happened, in words.
    pub message: String,
    /// What to send before closing.
    pub bytes: Vec<u8>,
}

/// A reader that waits for the reply to its opening.
pub struct Asking {
    terms: Terms,
    noise: HandshakeState,
}

/// A reader that waits for the verdict.
pub struct Proving {
    terms: Terms,
    noise: TransportState,
    owner: String,
}

impl Asking {
    /// Begins a greeting; the bytes are hello and proof.
    pub fn begin(
        credential: &Credential,
        terms: Terms,
    ) -> Result<(Self, [u8; HELLO_BYTES + PROOF_BYTES]), GreetError> {
        let hello = hello(&terms).encode();
        let builder = builder(credential, &hello).map_err(crypto)?;
        let mut noise = builder.build_initiator().map_err(crypto)?;
        let mut opening = [0; HELLO_BYTES + PROOF_BYTES];
        opening[..HELLO_BYTES].copy_from_slice(&hello);
        let name = name(credential);
        let written = noise.write_message(&name, &mut opening[HELLO_BYTES..]);
        debug_assert_eq!(written.map_err(crypto)?, PROOF_BYTES);
        Ok((Self { terms, noise }, opening))
    }

    /// How many bytes follow this welcome: a proof, or why the owner refuses.
    pub fn follows(&self, welcome: &[u8; WELCOME_BYTES]) -> Result<usize, GreetError> {
        let welcome = Welcome::decode(welcome, &self.terms.magic)?;
        Ok(match welcome.refusal {
            Some(_) => usize::from(welcome.message_bytes),
            None => PROOF_BYTES,
        })
    }

    /// Takes the owner's welcome and what follows it; the bytes are the confirmation.
    pub fn confirm(
        mut self,
        welcome: &[u8; WELCOME_BYTES],
        rest: &[u8],
    ) -> Result<(Proving, [u8; CONFIRM_BYTES]), GreetError> {
        accepts(welcome, rest, &self.terms.magic)?;
        let mut name = [0; NAME_BYTES];
        let read = self.noise.read_message(rest, &mut name);
        read.map_err(|_| GreetError::Impostor)?;
        let mut noise = self.noise.into_transport_mode().map_err(crypto)?;
        let mut confirm = [0; CONFIRM_BYTES];
        noise.write_message(&[], &mut confirm).map_err(crypto)?;
        let proving = Proving {
            terms: self.terms,
            noise,
            owner: identity(&name),
        };
        Ok((proving, confirm))
    }
}

impl Proving {
    /// Takes the verdict; gives the name that the owner goes by.
    pub fn accepted(mut self, verdict: &[u8; VERDICT_BYTES]) -> Result<String, GreetError> {
        let mut open = [0; SAID_BYTES];
        if self.noise.read_message(verdict, &mut open).is_err() {
            // An owner that does not take our confirmation has no seal: its words are but a hint.
            let hint = said(verdict, &self.terms.magic);
            return Err(hint.err().unwrap_or(GreetError::Impostor));
        }
        said(&open, &self.terms.magic)?;
        Ok(self.owner)
    }
}

/// An owner that waits for the confirmation of its reply.
pub struct Answering {
    terms: Terms,
    asked: Hello,
    noise: TransportState,
    reader: String,
}

/// An owner whose reader has proved itself, and now hears whether it is accepted.
pub struct Proven {
    terms: Terms,
    asked: Hello,
    noise: TransportState,
    reader: String,
}

impl Answering {
    /// Takes a reader's hello. Of one that is refused the proof need not be waited for: it may speak
    /// a version that has none.
    pub fn hear(terms: &Terms, hello: &[u8; HELLO_BYTES]) -> Result<(), Failed> {
        let mut failed = match Hello::decode(hello, &terms.magic) {
            Ok(asked) if asked.version == terms.version => return Ok(()),
            Ok(Hello { version, .. }) => {
                let ours = terms.version;
                let text = format!("protocol version {version} is not spoken here ({ours} is)");
                return Err(failed(terms, Refusal::Version, text));
            }
            Err(error) => failed(terms, Refusal::Version, error.to_string()),
        };
        failed.refusal = None;
        Err(failed)
    }

    /// Takes the hello, again, and the proof that follows it; the bytes are the reply.
    pub fn reply(
        credential: &Credential,
        terms: Terms,
        hello: &[u8; HELLO_BYTES],
        proof: &[u8; PROOF_BYTES],
    ) -> Result<(Self, [u8; WELCOME_BYTES + PROOF_BYTES]), Failed> {
        Self::hear(&terms, hello)?;
        let mut theirs = [0; NAME_BYTES];
        let mut answer = || {
            let mut noise = builder(credential, hello)?.build_responder()?;
            if noise.read_message(proof, &mut theirs).is_err() {
                return Ok(None);
            }
            let mut reply = [0; WELCOME_BYTES + PROOF_BYTES];
            reply[..WELCOME_BYTES].copy_from_slice(&say(&terms, None, 0, "")[..WELCOME_BYTES]);
            noise.write_message(&name(credential), &mut reply[WELCOME_BYTES..])?;
            Ok(Some((noise.into_transport_mode()?, reply)))
        };
        let answered = answer()
            .map_err(|error: snow::Error| failed(&terms, Refusal::Unproven, error.to_string()))?;
        let (noise, reply) = answered.ok_or_else(|| {
            let text = "the reader has another secret than this cluster".to_owned();
            failed(&terms, Refusal::Secret, text)
        })?;
        let asked = Hello::decode(hello, &terms.magic)
            .unwrap_or_else(|_| unreachable!("the hello was heard"));
        let answering = Self {
            terms,
            asked,
            noise,
            reader: identity(&theirs),
        };
        Ok((answering, reply))
    }

    /// Takes the reader's confirmation.
    pub fn confirmed(mut self, confirm: &[u8; CONFIRM_BYTES]) -> Result<Proven, Failed> {
        if self.noise.read_message(confirm, &mut []).is_err() {
            let text = "the reader did not prove that it is there now".to_owned();
            let mut failed = failed(&self.terms, Refusal::Unproven, text);
            failed.bytes.resize(VERDICT_BYTES, 0);
            return Err(failed);
        }
        Ok(Proven {
            terms: self.terms,
            asked: self.asked,
            noise: self.noise,
            reader: self.reader,
        })
    }
}

fn failed(terms: &Terms, refusal: Refusal, message: String) -> Failed {
    let said = say(terms, Some(refusal), 0, &message);
    let end = WELCOME_BYTES + message.len().min(MAX_MESSAGE_BYTES);
    Failed {
        refusal: Some(refusal),
        bytes: said[..end].to_vec(),
        message,
    }
}

impl Proven {
    /// The name that the reader goes by.
    pub fn reader(&self) -> &str {
        &self.reader
    }

    /// Why the reader asks for what is not here, if it does.
    pub fn misfit(&self) -> Option<(Refusal, String)> {
        let (asked, terms) = (&self.asked, &self.terms);
        if asked.namespace != terms.namespace {
            let text = format!("namespace {} is not served here", asked.namespace);
            return Some((Refusal::Namespace, text));
        }
        if asked.block_bytes != terms.block_bytes {
            let (ours, found) = (terms.block_bytes, asked.block_bytes);
            let text = format!("blocks have {ours} bytes here, not {found}");
            return Some((Refusal::BlockSize, text));
        }
        None
    }

    /// The verdict: why the reader is refused, or `None` to accept it.
    pub fn verdict(mut self, refusal: Option<(Refusal, &str)>) -> [u8; VERDICT_BYTES] {
        let message = refusal.map_or("", |(_, message)| message);
        let refusal = refusal.map(|(refusal, _)| refusal);
        let open = say(&self.terms, refusal, self.terms.block_bytes, message);
        let mut sealed = [0; VERDICT_BYTES];
        let written = self.noise.write_message(&open, &mut sealed);
        written.unwrap_or_else(|_| unreachable!("the first message of this length can be sealed"));
        sealed
    }
}

fn builder<'a>(credential: &'a Credential, hello: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    let params: NoiseParams = NOISE.parse()?;
    Builder::new(params)
        .prologue(hello)?
        .psk(0, credential.key())
}

fn hello(terms: &Terms) -> Hello {
    Hello {
        magic: terms.magic,
        version: terms.version,
        block_bytes: terms.block_bytes,
        namespace: terms.namespace,
    }
}

/// A welcome with its message, padded to the longest. A longer message is cut.
fn say(terms: &Terms, refusal: Option<Refusal>, block_bytes: u32, text: &str) -> [u8; SAID_BYTES] {
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let welcome = Welcome {
        magic: terms.magic,
        version: terms.version,
        refusal,
        block_bytes,
        message_bytes: end as u16,
    };
    let mut out = [0; SAID_BYTES];
    out[..WELCOME_BYTES].copy_from_slice(&welcome.encode());
    out[WELCOME_BYTES..WELCOME_BYTES + end].copy_from_slice(&text.as_bytes()[..end]);
    out
}

/// Reads what [`say`] wrote: an error if it refuses.
fn said(bytes: &[u8], magic: &[u8; 8]) -> Result<(), GreetError> {
    let (welcome, rest) = bytes
        .split_first_chunk()
        .unwrap_or_else(|| unreachable!("messages are longer than a welcome"));
    accepts(welcome, rest, magic)
}

/// An error if the welcome refuses; its message is in `rest`.
fn accepts(welcome: &[u8; WELCOME_BYTES], rest: &[u8], magic: &[u8; 8]) -> Result<(), GreetError> {
    let welcome = Welcome::decode(welcome, magic)?;
    let Some(refusal) = welcome.refusal else {
        return Ok(());
    };
    let end = rest.len().min(usize::from(welcome.message_bytes));
    let message = String::from_utf8_lossy(&rest[..end]);
    let message = message.escape_debug().to_string();
    Err(GreetError::Refused { refusal, message })
}

/// There is no randomness, or the parameters are wrong.
fn crypto(error: snow::Error) -> GreetError {
    GreetError::Crypto(error.to_string())
}

/// The credential's identity with its length, padded.
fn name(credential: &Credential) -> [u8; NAME_BYTES] {
    let identity = credential.identity().as_bytes();
    let mut out = [0; NAME_BYTES];
    out[..2].copy_from_slice(&(identity.len() as u16).to_le_bytes());
    out[2..2 + identity.len()].copy_from_slice(identity);
    out
}

/// Reads what [`name`] wrote. It comes from a member of the cluster, but may be anything.
fn identity(name: &[u8; NAME_BYTES]) -> String {
    let len = usize::from(u16::from_le_bytes([name[0], name[1]]));
    let text = String::from_utf8_lossy(&name[2..2 + len.min(IDENTITY_BYTES)]);
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests;
