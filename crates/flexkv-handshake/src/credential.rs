//! What a node proves itself with. Knows nothing of messages.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;

/// Sets this use of the secret apart from all others.
const PURPOSE: &[u8] = b"flexkv proof between nodes, version 1";
/// The longest identity in bytes.
pub(crate) const IDENTITY_BYTES: usize = 94;

/// A node's knowledge of the cluster's secret, and the name it goes by.
///
/// All nodes know the same secret, so the proof says that a peer belongs to the cluster; its name is
/// what it says of itself.
#[derive(Clone)]
pub struct Credential {
    key: [u8; 32],
    identity: String,
}

impl Credential {
    /// The credential of the node called `identity` (cut at 94 bytes) in the cluster of `secret`.
    /// Guessing a short secret is as easy as for any password: give it 128 random bits.
    pub fn new(secret: &[u8], identity: &str) -> Self {
        let mut key = [0; 32];
        let expanded = Hkdf::<Sha256>::new(None, secret).expand(PURPOSE, &mut key);
        expanded.unwrap_or_else(|_| unreachable!("32 bytes are a length that HKDF can give"));
        let mut end = identity.len().min(IDENTITY_BYTES);
        while !identity.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            key,
            identity: identity[..end].to_owned(),
        }
    }

    /// The name the node goes by.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, ..)", self.identity)
    }
}
