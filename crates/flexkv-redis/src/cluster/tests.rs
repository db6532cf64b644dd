//! The answer of CLUSTER SLOTS, as servers give it and otherwise.

use fred::types::Value;
use fred::types::config::Server;

use super::{find, parse};

fn array<const N: usize>(values: [Value; N]) -> Value {
    Value::Array(values.into())
}

fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
    let master = array([host, port.into(), "id".into(), array([])]);
    let replica = array(["10.0.0.9".into(), 9.into(), "id".into()]);
    array([first.into(), last.into(), master, replica])
}

#[test]
fn slots_are_found_at_their_masters() {
    let asked = Server::new("seed", 1);
    let answer = array([
        range(0, 99, "10.0.0.1".into(), 7001),
        range(200, 16383, Value::Null, 7002),
        range(100, 150, "".into(), 7003),
    ]);
    let slots = parse(answer, &asked).expect("a good answer");
    for (slot, expected) in [
        (0, Some("10.0.0.1:7001")),
        (99, Some("10.0.0.1:7001")),
        (100, Some("seed:7003")),
        (151, None),
        (16383, Some("seed:7002")),
    ] {
        let found = find(&slots, slot).map(|server| server.to_string());
        assert_eq!(found.as_deref(), expected, "slot {slot}");
    }
}

#[test]
fn other_answers_are_none() {
    let asked = Server::new("seed", 1);
    for answer in [
        Value::Null,
        Value::Integer(1),
        array([Value::Null]),
        array([array([])]),
        array([array([1.into(), 2.into()])]),
        array([range(0, 70000, "h".into(), 1)]),
        array([range(-1, 1, "h".into(), 1)]),
        array([range(0, 1, "h".into(), 70000)]),
        array([range(0, 1, array([]), 1)]),
    ] {
        assert_eq!(parse(answer.clone(), &asked), None, "{answer:?}");
    }
    assert_eq!(parse(array([]), &asked), Some(vec![]));
}
