//! Greetings: what both sides say before the first request, and how a session is refused or ended.
//!
//! `Hello` and `Refused` keep their layout in every version of the protocol, so that two versions
//! can tell each other that they do not fit.

use flexkv_block::NamespaceId;

use super::{Fields, MAGIC, WireError, put_frame, put_text};

/// The engine's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version the engine speaks.
    pub version: u16,
    /// The engine's process id, for the node's log.
    pub pid: u32,
}

impl Hello {
    /// The frame's kind.
    pub const KIND: u16 = 0x0001;
    /// Bytes of the body.
    pub const BODY_BYTES: usize = 12;

    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Self::KIND, 0, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&self.version.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.pid.to_le_bytes());
        });
    }

    /// Reads the body of a frame of `kind`.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
        if kind != Self::KIND {
            let expected = "Hello, which comes first";
            return Err(WireError::Kind { kind, expected });
        }
        let mut fields = Fields::new("Hello", body);
        fields.magic()?;
        let version = fields.u16("version")?;
        fields.zero(2)?;
        let pid = fields.u32("pid")?;
        fields.end(Self { version, pid })
    }
}

/// The node's answer to a `Hello`; the arena's memory file travels beside its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version spoken from here on.
    pub version: u16,
    /// The node's process id, for the engine's log.
    pub pid: u32,
    /// The namespace whose blocks the cache holds.
    pub namespace: NamespaceId,
    /// Bytes of every block.
    pub block_bytes: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Most keys the node takes in one request.
    pub max_keys: u32,
}

impl Welcome {
    /// The frame's kind.
    pub const KIND: u16 = 0x0002;
    /// Bytes of the body.
    pub const BODY_BYTES: usize = 52;

    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Self::KIND, 0, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&self.version.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.pid.to_le_bytes());
            out.extend_from_slice(&self.namespace.as_u128().to_le_bytes());
            out.extend_from_slice(&self.block_bytes.to_le_bytes());
            out.extend_from_slice(&self.arena_bytes.to_le_bytes());
            out.extend_from_slice(&self.max_keys.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        });
    }

    /// Reads the body of a frame of `kind`.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
        if kind != Self::KIND {
            let expected = "Welcome, which answers Hello";
            return Err(WireError::Kind { kind, expected });
        }
        let mut fields = Fields::new("Welcome", body);
        fields.magic()?;
        let version = fields.u16("version")?;
        fields.zero(2)?;
        let welcome = Self {
            version,
            pid: fields.u32("pid")?,
            namespace: NamespaceId::from_u128(fields.u128("namespace")?),
            block_bytes: fields.u64("block bytes")?,
            arena_bytes: fields.u64("arena bytes")?,
            max_keys: fields.u32("max keys")?,
        };
        fields.zero(4)?;
        fields.end(welcome)
    }
}

/// Why the node refuses or ends a session, sorted by what the engine does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusalCode {
    /// The two sides speak different versions.
    Version = 1,
    /// The engine's user may not attach.
    User = 2,
    /// The node has as many sessions as it takes.
    Busy = 3,
    /// The node shuts down.
    Closing = 4,
    /// The engine broke the protocol.
    Protocol = 5,
}

impl RefusalCode {
    fn from_u16(value: u16) -> Option<Self> {
        [
            Self::Version,
            Self::User,
            Self::Busy,
            Self::Closing,
            Self::Protocol,
        ]
        .into_iter()
        .find(|code| *code as u16 == value)
    }
}

/// The node's last frame of a session, if it still has something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason's class.
    pub code: RefusalCode,
    /// The reason, for people.
    pub text: String,
}

impl Refused {
    /// The frame's kind.
    pub const KIND: u16 = 0x0003;

    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Self::KIND, 0, |out| {
            out.extend_from_slice(&(self.code as u16).to_le_bytes());
            put_text(out, &self.text);
        });
    }

    /// Reads the body of a frame of [`Self::KIND`].
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("Refused", body);
        let number = fields.u16("code")?;
        let code = RefusalCode::from_u16(number).ok_or_else(|| WireError::Unknown {
            message: "Refused",
            field: "code",
            found: number.into(),
        })?;
        let text = fields.text()?;
        fields.end(Self { code, text })
    }
}
