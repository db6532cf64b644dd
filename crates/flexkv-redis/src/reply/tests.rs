//! Replies as the server gives them, and others.

use bytes::Bytes;
use flexkv_block::NamespaceId;
use flexkv_ports::{LogEntry, LogRead};
use fred::types::Value;

use super::{Malformed, News, flag, logs, news, values};
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
fn flags() {
    assert_eq!(flag(&Value::Integer(0)), Ok(false));
    assert_eq!(flag(&Value::Integer(1)), Ok(true));
    for reply in [Value::Null, Value::Integer(2), text("1"), array([])] {
        assert_eq!(flag(&reply), Err(Malformed), "{reply:?}");
    }
}

#[test]
fn members() {
    let none = News::default();
    assert_eq!(news(array([Value::Null, array([]), array([])])), Ok(none));
    let some = News {
        changes: Some(Bytes::from_static(b"a.7")),
        changed: vec!["x".to_owned(), "y".to_owned()],
        gone: vec!["z".to_owned()],
    };
    let both = array([text("x"), text("y")]);
    assert_eq!(
        news(array([text("a.7"), both, array([text("z")])])),
        Ok(some)
    );
    for reply in [
        Value::Null,
        array([]),
        array([text("a.7"), array([])]),
        array([text("a.7"), text("x"), array([])]),
    ] {
        assert_eq!(news(reply.clone()), Err(Malformed), "{reply:?}");
    }
    let some = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let reply = || array([text("x"), Value::Null, text("z")]);
    assert_eq!(values(reply(), 3), Ok(vec![some("x"), None, some("z")]));
    assert_eq!(values(reply(), 2), Err(Malformed));
    assert_eq!(values(text("x"), 1), Ok(vec![some("x")]));
    assert_eq!(values(Value::Null, 1), Ok(vec![None]));
    assert_eq!(values(Value::Null, 2), Err(Malformed));
    assert_eq!(values(Value::Integer(1), 1), Err(Malformed));
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
