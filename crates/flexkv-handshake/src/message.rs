//! The bytes of hello and welcome, as values and back. Both keep their layout in every version.

use flexkv_block::NamespaceId;
use thiserror::Error;

/// Bytes of a [`Hello`].
pub const HELLO_BYTES: usize = 32;
/// Bytes of a [`Welcome`] without its message.
pub const WELCOME_BYTES: usize = 24;
/// The longest message of a welcome.
pub const MAX_MESSAGE_BYTES: usize = 256;

/// What a reader says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// First bytes of the protocol that is to be spoken.
    pub magic: [u8; 8],
    /// The version it speaks.
    pub version: u16,
    /// Bytes of its blocks.
    pub block_bytes: u32,
    /// The namespace it reads.
    pub namespace: NamespaceId,
}

/// Why an owner refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// It does not speak the reader's version.
    Version = 1,
    /// It serves another namespace.
    Namespace = 2,
    /// Its blocks have another size.
    BlockSize = 3,
    /// It has as many connections as it may, in all or from this reader.
    TooManyConnections = 4,
    /// The reader has another secret than the cluster's.
    Secret = 5,
    /// The reader began well but does not go on: a recorded handshake that is played again does so.
    Unproven = 6,
    /// The reader's user may not read here.
    User = 7,
    /// The connection asked for more at once than it may.
    Oversized = 8,
    /// There was no agreement on certificates. TLS says so itself: it is counted, and never sent.
    Tls = 9,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Version,
        Self::Namespace,
        Self::BlockSize,
        Self::TooManyConnections,
        Self::Secret,
        Self::Unproven,
        Self::User,
        Self::Oversized,
        Self::Tls,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Namespace => "namespace",
            Self::BlockSize => "block_size",
            Self::TooManyConnections => "too_many_connections",
            Self::Secret => "secret",
            Self::Unproven => "unproven",
            Self::User => "user",
            Self::Oversized => "oversized",
            Self::Tls => "tls",
        }
    }

    fn from_u16(value: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u16 == value)
    }
}

/// An owner's answer to a [`Hello`]; a message of `message_bytes` bytes of UTF-8 follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// First bytes of the protocol.
    pub magic: [u8; 8],
    /// The version it speaks.
    pub version: u16,
    /// Why it refuses; `None` if it accepts.
    pub refusal: Option<Refusal>,
    /// Bytes of its blocks; 0 before the reader has proved itself.
    pub block_bytes: u32,
    /// Bytes of the message that follows.
    pub message_bytes: u16,
}

/// What is wrong with a hello or a welcome.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Not such a message at all.
    #[error("no {what} (it begins with {found:02x?})")]
    Magic {
        /// Which message was expected.
        what: &'static str,
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// A field has a value without a meaning.
    #[error("welcome with the unknown {field} {found}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u16,
    },
}

impl Hello {
    /// The message's bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0..8].copy_from_slice(&self.magic);
        out[8..10].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..32].copy_from_slice(&self.namespace.as_u128().to_le_bytes());
        out
    }

    /// Reads a hello that begins with `magic`. Of another version only the version is of interest.
    pub fn decode(bytes: &[u8; HELLO_BYTES], magic: &[u8; 8]) -> Result<Self, MessageError> {
        Ok(Self {
            magic: begins("hello", bytes, magic)?,
            version: u16::from_le_bytes(take(bytes, 8)),
            block_bytes: u32::from_le_bytes(take(bytes, 12)),
            namespace: NamespaceId::from_u128(u128::from_le_bytes(take(bytes, 16))),
        })
    }
}

impl Welcome {
    /// The message's bytes.
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut out = [0; WELCOME_BYTES];
        out[0..8].copy_from_slice(&self.magic);
        out[8..10].copy_from_slice(&self.version.to_le_bytes());
        out[10..12].copy_from_slice(&self.refusal.map_or(0, |r| r as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..18].copy_from_slice(&self.message_bytes.to_le_bytes());
        out
    }

    /// Reads a welcome that begins with `magic`.
    pub fn decode(bytes: &[u8; WELCOME_BYTES], magic: &[u8; 8]) -> Result<Self, MessageError> {
        let magic = begins("welcome", bytes, magic)?;
        let unknown = |field, found| MessageError::Unknown { field, found };
        let code = u16::from_le_bytes(take(bytes, 10));
        let refusal = match code {
            0 => None,
            code => Some(Refusal::from_u16(code).ok_or_else(|| unknown("refusal", code))?),
        };
        let message_bytes = u16::from_le_bytes(take(bytes, 16));
        if usize::from(message_bytes) > MAX_MESSAGE_BYTES {
            return Err(unknown("message length", message_bytes));
        }
        Ok(Self {
            magic,
            version: u16::from_le_bytes(take(bytes, 8)),
            refusal,
            block_bytes: u32::from_le_bytes(take(bytes, 12)),
            message_bytes,
        })
    }
}

/// The magic of a message, which must be `magic`.
fn begins(what: &'static str, bytes: &[u8], magic: &[u8; 8]) -> Result<[u8; 8], MessageError> {
    let found = take(bytes, 0);
    if found == *magic {
        Ok(found)
    } else {
        Err(MessageError::Magic { what, found })
    }
}

/// The `N` bytes from `at`; callers pass messages of fixed size, which hold them.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
