//! Names and records: what is taken, what is refused and in which words.

use proptest::prelude::*;

use super::*;

fn node(name: &str) -> NodeId {
    NodeId {
        name: name.parse().expect("a good name"),
        incarnation: 0x0123_4567_89ab_cdef,
    }
}

fn info(locality: &str, endpoints: &[&str]) -> Result<NodeInfo, RecordError> {
    let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
    let namespace = NamespaceId::from_u128(7 << 100);
    NodeInfo::new(node("n-1"), namespace, 4096, locality.to_owned(), endpoints)
}

fn record() -> NodeRecord {
    NodeRecord {
        info: info("rack-1", &["tcp://10.0.0.1:7000", "shm://host/1"]).expect("good info"),
        epoch: 3,
        log_start: 17,
        rotated: true,
    }
}

/// A record with some bytes replaced and a checksum that fits them.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut all = record().encode().to_vec();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    let end = all.len() - 8;
    let sum = Checksum::of(&all[..end]);
    all[end..].copy_from_slice(&sum.0.to_le_bytes());
    all
}

#[test]
fn names_have_one_form() {
    let id = node("gpu-7_a");
    assert_eq!(id.to_string(), "gpu-7_a.0123456789abcdef");
    assert_eq!(id.to_string().parse(), Ok(id.clone()));
    assert_eq!(id.log(12), "gpu-7_a.0123456789abcdef.12");
    assert_eq!(NodeId::parse_log(&id.log(12)), Ok((id, 12)));
    for bad in [
        "",
        "gpu",
        "gpu.12",
        "gpu.0123456789ABCDEF",
        "g u.0123456789abcdef",
        ".0123456789abcdef",
    ] {
        let error = bad.parse::<NodeId>().expect_err(bad);
        assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
    }
    for bad in [
        "gpu.0123456789abcdef",
        "gpu.0123456789abcdef.01",
        "gpu.0123456789abcdef.+1",
    ] {
        assert!(NodeId::parse_log(bad).is_err(), "{bad}");
    }
    let long = "x".repeat(65);
    for bad in ["", "a.b", "a b", "ä", "a:b", "a{b}", &long] {
        let error = bad.parse::<NodeName>().expect_err(bad);
        assert!(error.to_string().contains("is not a node name"), "{error}");
    }
}

#[test]
fn info_is_checked_when_made() {
    let check = |made: Result<NodeInfo, RecordError>, words: &str| {
        let error = made.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    check(
        info(&"x".repeat(129), &[]),
        "locality is 129, over the limit of 128",
    );
    check(info("", &["tcp"]), "`tcp` is not an endpoint");
    check(info("", &["://x"]), "`://x` is not an endpoint");
    check(info("", &["tcp://a b"]), "`tcp://a b` is not an endpoint");
    check(info("", &["tcp://a"; 17]), "number of endpoints is 17");
    let id = NamespaceId::from_u128(1);
    check(
        NodeInfo::new(node("n"), id, 0, String::new(), vec![]),
        "0 bytes",
    );
}

#[test]
fn a_record_reads_back() {
    assert_eq!(NodeRecord::decode(&record().encode()), Ok(record()));
    assert_eq!(record().log(), "n-1.0123456789abcdef.3");
}

#[test]
fn a_malformed_record_is_named() {
    let check = |bytes: &[u8], words: &str| {
        let error = NodeRecord::decode(bytes).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let good = record().encode();
    check(b"", "ends within its magic");
    check(b"HTTP/1.1", "not a node record");
    check(&good[..30], "damaged");
    check(&good[..6], "ends within its checksum");
    check(&forged(4, &2u16.to_le_bytes()), "node speaks version 2");
    check(&forged(6, &8u16.to_le_bytes()), "unknown flags 0x0008");
    check(&forged(32, &[0; 4]), "0 bytes");
    check(&forged(40, &[0; 8]), "sequence 0");
    check(&forged(48, &[255, 0]), "ends within the name");
    check(&forged(50, b"?"), "is not a node name");
    check(&forged(55, &[0xff]), "the locality is not UTF-8");
    check(&vec![0; 9000], "over the limit");
    for at in 6..good.len() {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        check(&bytes, "damaged");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        framed in any::<bool>(),
    ) {
        if framed {
            let head = record().encode();
            let n = bytes.len().min(48);
            bytes[..n].copy_from_slice(&head[..n]);
            let sum = Checksum::of(&bytes);
            bytes.extend_from_slice(&sum.0.to_le_bytes());
        }
        if let Ok(record) = NodeRecord::decode(&bytes) {
            prop_assert_eq!(&record.encode()[..], &bytes[..]);
        }
    }
}
