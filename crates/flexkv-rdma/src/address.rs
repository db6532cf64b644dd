//! Endpoints: where an owner's readers greet it, such as `rdma://10.0.0.1:7001`.
//!
//! That is a TCP address. Which device and port then carry the blocks is told in the greeting.

use std::net::SocketAddr;

/// Scheme of the endpoints.
pub(crate) const SCHEME: &str = "rdma";

/// The address of an endpoint. Names are not resolved.
pub(crate) fn parse(endpoint: &str) -> Option<SocketAddr> {
    let address = endpoint.strip_prefix(SCHEME)?.strip_prefix("://")?;
    address.parse().ok()
}

/// The endpoint of an address.
pub(crate) fn show(address: SocketAddr) -> String {
    format!("{SCHEME}://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_as_it_is_written() {
        for text in ["10.0.0.1:7001", "[fe80::1]:7001"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(parse(&show(address)), Some(address));
        }
    }

    #[test]
    fn what_is_no_endpoint_is_none() {
        for text in [
            "",
            "rdma://",
            "rdma://host:1",
            "rdma://10.0.0.1",
            "tcp://10.0.0.1:7001",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
