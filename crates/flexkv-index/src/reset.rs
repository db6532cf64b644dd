//! Requests to drop all blocks, and answers to them: both are leases in the metadata store, so they
//! need no other way through it and expire by themselves.
//!
//! Whoever asks takes a lease called `@reset.TOKEN`. Each node that is meant drops its blocks once
//! for each token that it sees, and takes a lease `@reset.TOKEN.NODE` to say so. While a request to
//! all nodes stands, none fetches from another: what one has dropped cannot come back from one that
//! has not yet. Knows nothing of how blocks are dropped.
//!
//! ```text
//! offset size  field of a request
//!      0    4  magic "FKVR"
//!      4    2  version, u16 LE: 1
//!      6    2  bytes of the name, u16 LE; 0 asks all nodes
//!      8       name
//!   last    8  XXH3-64 of all bytes before, u64 LE
//! ```

use bytes::Bytes;
use flexkv_block::Checksum;

use crate::record::{NodeId, NodeName};

/// No node's name begins so.
const PREFIX: &str = "@reset.";
const MAGIC: [u8; 4] = *b"FKVR";
const VERSION: u16 = 1;

/// A request to drop all blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRequest {
    /// Random; tells one request from another.
    pub token: u64,
    /// Who is meant; all nodes if nobody is named.
    pub node: Option<NodeName>,
}

impl ResetRequest {
    /// The lease that carries it.
    pub fn lease(&self) -> String {
        format!("{PREFIX}{:016x}", self.token)
    }

    /// What the lease says.
    pub fn encode(&self) -> Bytes {
        let name = self.node.as_ref().map_or("", NodeName::as_str);
        let mut out = Vec::with_capacity(16 + name.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        let sum = Checksum::of(&out);
        out.extend_from_slice(&sum.0.to_le_bytes());
        out.into()
    }

    /// The request of the lease `name` that says `bytes`; none if it is something else, or of another
    /// version.
    pub fn decode(name: &str, bytes: &[u8]) -> Option<Self> {
        let token = token(name.strip_prefix(PREFIX)?)?;
        let (rest, sum) = bytes.split_last_chunk()?;
        if u64::from_le_bytes(*sum) != Checksum::of(rest).0 {
            return None;
        }
        let rest = rest.strip_prefix(&MAGIC)?;
        let rest = rest.strip_prefix(&VERSION.to_le_bytes())?;
        let (len, text) = rest.split_first_chunk()?;
        if usize::from(u16::from_le_bytes(*len)) != text.len() {
            return None;
        }
        let node = match std::str::from_utf8(text).ok()? {
            "" => None,
            name => Some(name.parse().ok()?),
        };
        Some(Self { token, node })
    }

    /// Whether `node` is meant.
    pub fn is_for(&self, node: &NodeId) -> bool {
        self.node.as_ref().is_none_or(|name| *name == node.name)
    }

    /// The lease by which `node` says that it has dropped its blocks.
    pub fn answer(&self, node: &NodeId) -> String {
        format!("{}.{node}", self.lease())
    }

    /// Who says so by the lease `name`.
    pub fn answered_by(&self, name: &str) -> Option<NodeId> {
        let node = name.strip_prefix(&self.lease())?.strip_prefix('.')?;
        node.parse().ok()
    }
}

/// Whether the lease `name` is a request or an answer, of whatever version, and not a node's.
pub fn is_reset_lease(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn token(digits: &str) -> Option<u64> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 16 || !digits.bytes().all(lower_hex) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests;
