//! Who a node is and what it announces of itself: names, and the record it keeps in the metadata
//! store.
//!
//! ```text
//! offset size  field
//!      0    4  magic "FKVN"
//!      4    2  protocol version, u16 LE
//!      6    2  flags, u16 LE: bit 0 = the previous epoch's log ends with a Rotate entry
//!      8    8  incarnation, u64 LE
//!     16   16  namespace, u128 LE
//!     32    4  bytes of a block, u32 LE
//!     36    4  epoch, u32 LE
//!     40    8  sequence of the first entry of that epoch's log, u64 LE
//!     48       name, locality: each u16 LE length + bytes
//!              number of endpoints u16 LE, then each u16 LE length + bytes
//!   last    8  XXH3-64 of all bytes before, u64 LE
//! ```
//! Knows nothing of the store that keeps it, and never compares two nodes' clocks.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use flexkv_block::{Checksum, NamespaceId};
use thiserror::Error;

mod codec;

/// Version of the protocol spoken here: of the record, and of the log that it announces.
pub const PROTOCOL_VERSION: u16 = 1;

/// A node's name: 1 to 64 of `A-Z a-z 0-9 _ -`. It becomes a part of keys of the metadata store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Box<str>);

impl NodeName {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 64;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if text.is_empty() || text.len() > Self::MAX_BYTES || !text.bytes().all(good) {
            return Err(NameError::Name { text: clip(text) });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One start of one node. Its text form, `NAME.INCARNATION` with 16 hexadecimal digits, is the name
/// it holds its lease under.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// What the operator calls the node.
    pub name: NodeName,
    /// Random per start, so that nothing collides after a restart or a flush of the store.
    pub incarnation: u64,
}

impl NodeId {
    /// The name of this node's log of `epoch`: `NAME.INCARNATION.EPOCH`.
    pub fn log(&self, epoch: u32) -> String {
        format!("{self}.{epoch}")
    }

    /// The node and epoch that a log's name speaks of.
    pub fn parse_log(log: &str) -> Result<(Self, u32), NameError> {
        let wrong = || NameError::Log { text: clip(log) };
        let (id, epoch) = log.rsplit_once('.').ok_or_else(wrong)?;
        let id = id.parse::<Self>().map_err(|_| wrong())?;
        let number = epoch.parse::<u32>().map_err(|_| wrong())?;
        if number.to_string() == epoch {
            Ok((id, number))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.name, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Node { text: clip(text) };
        let (name, digits) = text.split_once('.').ok_or_else(wrong)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != 16 || !digits.bytes().all(lower_hex) {
            return Err(wrong());
        }
        Ok(Self {
            name: name.parse().map_err(|_| wrong())?,
            incarnation: u64::from_str_radix(digits, 16).map_err(|_| wrong())?,
        })
    }
}

/// Text that does not name what it should.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// No log's name.
    #[error("`{text}` is not the name of a log (NAME.INCARNATION.EPOCH)")]
    Log {
        /// The text, clipped.
        text: String,
    },
    /// No node name.
    #[error(
        "`{text}` is not a node name (1 to {} of A-Z a-z 0-9 _ -)",
        NodeName::MAX_BYTES
    )]
    Name {
        /// The text, clipped.
        text: String,
    },
    /// No node id.
    #[error("`{text}` is not a node id (NAME.INCARNATION, 16 hexadecimal digits)")]
    Node {
        /// The text, clipped.
        text: String,
    },
}

/// The first characters of `text`, so that an error stays small whatever was given.
fn clip(text: &str) -> String {
    text.chars().take(96).collect()
}

/// What a node says of itself that stays the same for its whole life. Always within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    node: NodeId,
    namespace: NamespaceId,
    block_bytes: u32,
    locality: String,
    endpoints: Vec<String>,
}

impl NodeInfo {
    /// Longest locality label in bytes.
    pub const MAX_LOCALITY_BYTES: usize = 128;
    /// Longest endpoint in bytes.
    pub const MAX_ENDPOINT_BYTES: usize = 256;
    /// Most endpoints a node has.
    pub const MAX_ENDPOINTS: usize = 16;

    /// Describes a node. `locality` groups nodes that are near each other and may be empty;
    /// `endpoints` are URIs such as `tcp://10.0.0.1:7000`.
    pub fn new(
        node: NodeId,
        namespace: NamespaceId,
        block_bytes: u32,
        locality: String,
        endpoints: Vec<String>,
    ) -> Result<Self, RecordError> {
        if block_bytes == 0 {
            return Err(RecordError::NoBlockBytes);
        }
        limit("locality", locality.len(), Self::MAX_LOCALITY_BYTES)?;
        limit("number of endpoints", endpoints.len(), Self::MAX_ENDPOINTS)?;
        for endpoint in &endpoints {
            limit("endpoint", endpoint.len(), Self::MAX_ENDPOINT_BYTES)?;
            let scheme = endpoint.split_once("://").map_or("", |(scheme, _)| scheme);
            if scheme.is_empty() || !endpoint.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(RecordError::Endpoint {
                    text: clip(endpoint),
                });
            }
        }
        Ok(Self {
            node,
            namespace,
            block_bytes,
            locality,
            endpoints,
        })
    }

    /// Which node, in which of its lives.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The namespace whose blocks it holds.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// Bytes of each of its blocks.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Groups nodes that are near each other; may be empty.
    pub fn locality(&self) -> &str {
        &self.locality
    }

    /// URIs at which its blocks can be fetched.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}

/// What a node keeps in the metadata store under its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// What stays the same.
    pub info: NodeInfo,
    /// Which of its logs is the current one.
    pub epoch: u32,
    /// Sequence of that log's first entry.
    pub log_start: u64,
    /// The previous epoch's log ends with a Rotate entry of sequence `log_start - 1`, so that
    /// whoever has read it needs no checkpoint.
    pub rotated: bool,
}

impl NodeRecord {
    /// The record's bytes.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        codec::decode(bytes)
    }

    /// The name of the log that the record announces.
    pub fn log(&self) -> String {
        self.info.node.log(self.epoch)
    }
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Its checksum does not match its bytes.
    #[error("node record is damaged (checksum {found:016x}, computed {computed:016x})")]
    Damaged {
        /// The checksum in the record.
        found: u64,
        /// The checksum of its bytes.
        computed: u64,
    },
    /// No URI.
    #[error("`{text}` is not an endpoint (SCHEME://ADDRESS in printable ASCII)")]
    Endpoint {
        /// The text, clipped.
        text: String,
    },
    /// A flag that this build does not know.
    #[error("node record has unknown flags {found:#06x}")]
    Flags {
        /// The flags.
        found: u16,
    },
    /// Something is longer than it may be.
    #[error("node record: {what} is {found}, over the limit of {limit}")]
    Limit {
        /// What it is.
        what: &'static str,
        /// How much of it there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// A log starts at sequence 1 or later.
    #[error("node record announces a log that starts at sequence 0")]
    LogStart,
    /// Not a node record at all.
    #[error("not a node record (magic {found:02x?})")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The name in the record is none.
    #[error("node record: {0}")]
    Name(#[from] NameError),
    /// Blocks have at least one byte.
    #[error("node record says that blocks have 0 bytes")]
    NoBlockBytes,
    /// Text that is not UTF-8.
    #[error("node record: {what} is not UTF-8")]
    Text {
        /// Which text.
        what: &'static str,
    },
    /// Bytes after the record's end.
    #[error("node record is followed by {bytes} more bytes")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The record ends too early.
    #[error("node record ends within {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Another version of the protocol.
    #[error(
        "node speaks version {found} of the protocol; this build speaks {PROTOCOL_VERSION}. Bring \
         all nodes to one version"
    )]
    Version {
        /// The version in the record.
        found: u16,
    },
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), RecordError> {
    if found > limit {
        return Err(RecordError::Limit { what, found, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
