//! Where an owner shares its arena: a host, and a socket name on it.
//!
//! The socket's name is abstract: it lies in no folder, any user of the host can reach it (whom to
//! serve is decided per connection), and nothing is left when its process ends, however it does.

use std::fmt;
use std::io;

/// Scheme of the endpoints.
pub(super) const SCHEME: &str = "shm";
/// Where the kernel tells which boot of which machine this is; the same in all its containers.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This host, until it is started anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostId(String);

impl HostId {
    pub(super) fn read() -> io::Result<Self> {
        let text = std::fs::read_to_string(BOOT_ID)?;
        Ok(Self(text.trim().to_owned()))
    }
}

/// A host and the arena that is shared there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: HostId,
    pub(super) arena: u64,
}

impl Address {
    /// The address of an endpoint such as `shm://0a1b…/0123456789abcdef`.
    pub(super) fn parse(endpoint: &str) -> Option<Self> {
        let rest = endpoint.strip_prefix(SCHEME)?.strip_prefix("://")?;
        let (host, arena) = rest.split_once('/')?;
        let hexadecimal = arena.len() == 16 && arena.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self {
            host: HostId(host.to_owned()),
            arena: u64::from_str_radix(arena, 16)
                .ok()
                .filter(|_| hexadecimal)?,
        })
    }

    /// The name of the socket, as tokio takes it: abstract, as it begins with a zero.
    pub(super) fn socket(&self) -> String {
        format!("\0flexkv-shm-{:016x}", self.arena)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}://{}/{:016x}", self.host.0, self.arena)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address = Address {
            host: HostId::read().expect("the kernel tells it"),
            arena: 0xab,
        };
        let text = address.to_string();
        assert!(text.ends_with("/00000000000000ab"), "{text}");
        assert_eq!(Address::parse(&text), Some(address));
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in [
            "",
            "shm://",
            "shm:///",
            "shm://host",
            "shm://host/",
            "shm://host/12",
            "shm://host/+123456789abcdef",
            "tcp://host/0123456789abcdef",
        ] {
            let address = Address::parse(text);
            assert_eq!(address, None, "{text}");
        }
    }
}
