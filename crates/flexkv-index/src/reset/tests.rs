//! Requests and answers, byte by byte and damaged.

use super::{ResetRequest, is_reset_lease};
use crate::record::NodeId;

fn request(node: Option<&str>) -> ResetRequest {
    ResetRequest {
        token: 0xab,
        node: node.map(|name| name.parse().expect("a good name")),
    }
}

#[test]
fn requests_come_back_as_they_were() {
    for request in [request(None), request(Some("gpu-7"))] {
        let bytes = request.encode();
        let lease = request.lease();
        assert_eq!(lease, "@reset.00000000000000ab");
        assert!(is_reset_lease(&lease));
        assert_eq!(ResetRequest::decode(&lease, &bytes), Some(request));
    }
    let bytes = request(Some("n")).encode();
    assert_eq!(bytes[..9], *b"FKVR\x01\0\x01\0n");
}

#[test]
fn what_is_no_request_is_none() {
    let good = request(Some("n"));
    let (lease, bytes) = (good.lease(), good.encode());
    for i in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[i] ^= 1;
        assert_eq!(ResetRequest::decode(&lease, &damaged), None, "byte {i}");
        assert_eq!(ResetRequest::decode(&lease, &bytes[..i]), None, "{i} bytes");
    }
    for name in ["n.00000000000000ab", "@reset.ab", "@reset.00000000000000AB"] {
        assert_eq!(ResetRequest::decode(name, &bytes), None, "{name}");
    }
}

#[test]
fn answers_name_the_node() {
    let node: NodeId = "gpu-7.0123456789abcdef".parse().expect("a good name");
    let request = request(Some("gpu-7"));
    let answer = request.answer(&node);
    assert_eq!(answer, "@reset.00000000000000ab.gpu-7.0123456789abcdef");
    assert!(is_reset_lease(&answer));
    assert_eq!(request.answered_by(&answer), Some(node.clone()));
    assert_eq!(request.answered_by(&request.lease()), None);
    assert_eq!(ResetRequest::decode(&answer, &request.encode()), None);
    assert!(request.is_for(&node));
    let other = ResetRequest {
        node: Some("gpu-8".parse().expect("a good name")),
        ..request
    };
    assert!(!other.is_for(&node));
}
