//! Reading documents: wrong types, ranges, missing and unknown keys, and what is suggested.

use super::*;

fn problems(text: &str) -> Vec<String> {
    let document: Table = text.parse().unwrap();
    let mut fields = Fields::new(&document);
    fields.required_text("name", "who this is");
    fields.text("redis.url");
    fields.number("memory.slots", 1..=10);
    fields.parsed("memory.size", |text| {
        Err::<(), _>(format!("`{text}` is odd"))
    });
    let problems = fields.finish();
    problems
        .into_iter()
        .map(|problem| format!("{}: {}", problem.key, problem.reason))
        .collect()
}

#[test]
fn wrong_values_are_named_all_at_once() {
    assert_eq!(
        problems("name = 'a'\nredis.url = 'u'\nmemory.slots = 10"),
        [""; 0]
    );
    assert_eq!(problems("name = 'a'\n[redis]"), [""; 0]);
    assert_eq!(problems("name = 'a'\n[rds]"), ["rds: unknown section"]);
    assert_eq!(problems(""), ["name: is missing: who this is"]);
    assert_eq!(problems("name = ''"), ["name: is empty: who this is"]);
    assert_eq!(
        problems("name = 7\nredis.url = ['x']\nmemory.slots = 0\nmemory.size = 'x'"),
        [
            "name: must be text in quotes, not a number",
            "redis.url: must be text in quotes, not a list",
            "memory.slots: must be a whole number from 1 to 10, not 0",
            "memory.size: `x` is odd",
        ]
    );
}

#[test]
fn unknown_keys_come_first_and_suggest_the_nearest() {
    assert_eq!(
        problems("nam = 'a'"),
        [
            "nam: unknown key, did you mean `name`?",
            "name: is missing: who this is",
        ]
    );
    for (key, near) in [
        ("redis_ur", Some("redis.url")),
        ("redis.ur", Some("redis.url")),
        ("redis.URL", Some("redis.url")),
        ("url", Some("redis.url")),
        ("memory.slot", Some("memory.slots")),
        ("slots", Some("memory.slots")),
        ("memory.sizes", Some("memory.size")),
        ("completely.different", None),
    ] {
        let expect = match near {
            Some(near) => format!("{key}: unknown key, did you mean `{near}`?"),
            None => format!("{key}: unknown key"),
        };
        assert_eq!(problems(&format!("name = 'a'\n{key} = 1")), [expect]);
    }
}
