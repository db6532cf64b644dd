//! Replies as the server gives them, and others.

use bytes::Bytes;
use flexkv_block::NamespaceId;
use flexkv_ports::{LogEntry, LogRead, Renewal};
use fred::types::Value;

use super::{Malformed, lease_keys, logs, records, renewal};
use crate::keys::Keys;

fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

fn array<const N: usize>(values: [Value; N]) -> Value {
    Value::Array(values.into())
}

fn keys() -> Keys {
    Keys::new("c", NamespaceId::from_u128(1))
}

#[test]
fn renewals() {
    let kept = |lease_kept, log_kept| Renewal {
        lease_kept,
        log_kept,
    };
    for (lease, log, expected) in [
        (1, 1, Ok(kept(true, true))),
        (1, 0, Ok(kept(true, false))),
        (0, 0, Ok(kept(false, false))),
    ] {
        let reply = array([Value::Integer(lease), Value::Integer(log)]);
        assert_eq!(renewal(reply), expected);
    }
    for reply in [Value::Null, array([]), array([text("1"), text("1")])] {
        assert_eq!(renewal(reply), Err(Malformed));
    }
}

#[test]
fn members() {
    assert_eq!(lease_keys(Value::Null), Ok(vec![]));
    assert_eq!(lease_keys(array([text("a")])), Ok(vec!["a".to_owned()]));
    assert_eq!(lease_keys(Value::Integer(1)), Err(Malformed));
    let some = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let reply = array([Value::Integer(3), text("x"), Value::Null, text("z")]);
    assert_eq!(records(reply, 3), Ok(vec![some("x"), None, some("z")]));
    let cut = array([Value::Integer(3), text("x")]);
    assert_eq!(records(cut, 3), Ok(vec![some("x"), None, None]));
    assert_eq!(records(array([]), 0), Err(Malformed));
    assert_eq!(
        records(array([Value::Integer(0), text("x")]), 0),
        Err(Malformed)
    );
}

#[test]
fn log_entries() {
    let entry = |id, fields| array([text(id), fields]);
    let ours = |id, bytes| entry(id, array([text("b"), text(bytes)]));
    let reply = array([array([
        text(&keys().log("l")),
        array([
            ours("1-0", "one"),
            entry("2-0", Value::Null),
            entry("3-0", array([text("a"), text("b"), text("c"), text("d")])),
            ours("3-1", "second of one number"),
            ours("18446744073709551615-0", ""),
        ]),
    ])]);
    let entry = |sequence, bytes: &'static str| LogEntry {
        sequence,
        bytes: bytes.into(),
    };
    let entries = vec![
        entry(1, "one"),
        entry(2, ""),
        entry(3, ""),
        entry(u64::MAX, ""),
    ];
    let log = "l".to_owned();
    assert_eq!(logs(reply, &keys()), Ok(vec![LogRead { log, entries }]));
    assert_eq!(logs(Value::Null, &keys()), Ok(vec![]), "no news");
}

#[test]
fn malformed_logs() {
    let of_key = |key: &str| array([array([text(key), array([])])]);
    let of_entry = |entry| array([array([text(&keys().log("l")), array([entry])])]);
    for reply in [
        Value::Integer(1),
        array([Value::Null]),
        of_key("flexkv:other"),
        array([array([text(&keys().log("l")), Value::Null])]),
        of_entry(Value::Null),
        of_entry(array([text("1-0")])),
        of_entry(array([text("one"), array([])])),
        of_entry(array([text("x-0"), array([])])),
        of_entry(array([text("18446744073709551616-0"), array([])])),
    ] {
        assert_eq!(logs(reply.clone(), &keys()), Err(Malformed), "{reply:?}");
    }
}
