//! Answers of a Redis server, of any shape: keys of leases, records, logs, and the slots of a cluster.
//! What is understood of them keeps to what the commands promise.
//!
//! Knows nothing of connections; the bytes are a little program that builds an answer.

use flexkv_redis::answers::understand;
use fred::types::Value;

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "redis_reply",
    run,
    seeds,
};

/// Answers are nested no deeper, and no longer.
const DEPTH: usize = 6;
const LENGTH: usize = 8;

/// The bytes as a program: zeros when they are used up.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.byte() % 8 {
            0 => Value::Null,
            1 => Value::Integer(self.byte().into()),
            2 => Value::Integer(i64::from(self.byte()) << 56 | i64::from(self.byte()) << 9),
            3 => Value::Bytes(self.bytes().into()),
            4 => match String::from_utf8(self.bytes()) {
                Ok(text) => Value::from(text),
                Err(error) => Value::Bytes(error.into_bytes().into()),
            },
            5 => Value::Boolean(self.byte() % 2 == 1),
            _ if depth == DEPTH => Value::Array(Vec::new()),
            _ => {
                let len = usize::from(self.byte()) % LENGTH;
                Value::Array((0..len).map(|_| self.value(depth + 1)).collect())
            }
        }
    }
}

fn run(data: &[u8]) {
    let answer = Program(data).value(0);
    let understood = understand(&answer, "fuzz", "host:1");
    for log in understood.logs.iter().flatten() {
        let named = |key: &str| key.ends_with(&format!("}}:log:{}", log.log));
        assert!(contains(&answer, &named), "{log:?} was not in the answer");
        let repeats = log
            .entries
            .windows(2)
            .any(|pair| pair[0].sequence == pair[1].sequence);
        assert!(!repeats, "{log:?}");
    }
    if let (Some(records), Value::Array(values)) = (&understood.records, &answer) {
        assert_eq!(records.len(), values.len());
    }
    for (_, _, server) in understood.slots.iter().flatten() {
        assert!(!server.is_empty());
    }
}

/// Whether somewhere in an answer there is a text like this.
fn contains(answer: &Value, like: &impl Fn(&str) -> bool) -> bool {
    match answer {
        Value::Array(values) => values.iter().any(|value| contains(value, like)),
        value => value.as_str().is_some_and(|text| like(&text)),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| [&[4, text.len() as u8], text.as_bytes()].concat();
    let array = |values: Vec<Vec<u8>>| [vec![6, values.len() as u8], values.concat()].concat();
    let number = |n: u8| vec![1, n];
    let entry = |id: &str| array(vec![text(id), array(vec![text("e"), vec![3, 2, 7, 8]])]);
    let key = "flexkv:{fuzz:00000000000000000000000000000000:";
    let logs = (0..16).map(|group| {
        let key = text(&format!("{key}{group:x}}}:log:a.0000000000000001.1"));
        array(vec![array(vec![
            key,
            array(vec![entry("1-0"), entry("2-0")]),
        ])])
    });
    let master = array(vec![text("10.0.0.1"), number(99), text("id")]);
    let nameless = array(vec![vec![0], number(99)]);
    let slots = array(vec![
        array(vec![number(0), number(100), master]),
        array(vec![number(101), number(200), nameless]),
    ]);
    let came = array(vec![text("flexkv:{fuzz:0}:lease:a"), text("b"), vec![0]]);
    let leases = array(vec![text("7"), came, array(vec![])]);
    let flags = [number(0), number(1), vec![0]];
    logs.chain(flags).chain([slots, leases]).collect()
}
