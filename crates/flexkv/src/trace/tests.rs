//! Traces: what is read, what is refused and how it is named, and which keys come out.

use super::*;

const GOOD: &str =
    r#"{"timestamp": 27, "input_length": 600, "output_length": 5, "hash_ids": [0, 14]}"#;

fn check(text: &str, expect: &str) {
    let found = match read_from(text.as_bytes(), "t.jsonl", None) {
        Ok(requests) => format!("{} requests", requests.len()),
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expect, "for {text:?}");
}

#[test]
fn lines_are_requests_and_errors_name_file_and_line() {
    check(GOOD, "1 requests");
    check(&format!("{GOOD}\n\n  \n{GOOD}\r\n"), "2 requests");
    check("", "the trace t.jsonl has no requests");
    check("\n\n", "the trace t.jsonl has no requests");
    check(
        &format!("{GOOD}\nnot json"),
        "t.jsonl:2: column 2: expected ident",
    );
    check(
        &format!("{GOOD}\n\n{{\"timestamp\": 1}}"),
        "t.jsonl:3: column 16: missing field `input_length`",
    );
    check(
        &GOOD.replace("14", "-1"),
        "t.jsonl:1: column 77: invalid value: integer `-1`, expected u64",
    );
    check(
        &GOOD.replace("[0, 14]", "7"),
        "t.jsonl:1: column 72: invalid type: integer `7`, expected a sequence",
    );
    check(
        &GOOD[..40],
        "t.jsonl:1: column 40: EOF while parsing a string",
    );
}

#[test]
fn a_request_has_the_fields_of_its_line() {
    let requests = read_from(GOOD.as_bytes(), "t", None).unwrap();
    assert_eq!(
        requests[0],
        TraceRequest {
            timestamp: 27,
            input_length: 600,
            output_length: 5,
            hash_ids: vec![0, 14],
        }
    );
}

#[test]
fn a_limit_leaves_the_rest_unread() {
    let text = format!("{GOOD}\n{GOOD}\nnot json");
    let requests = read_from(text.as_bytes(), "t", Some(2)).unwrap();
    assert_eq!(requests.len(), 2);
}

#[test]
fn a_missing_file_is_named() {
    let error = read(Path::new("/does/not/exist.jsonl"), None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot read the trace /does/not/exist.jsonl: No such file"),
        "{text}"
    );
}

fn keys(block_tokens: usize, ids: &[u64]) -> Vec<BlockKey> {
    let secret = ClusterSecret::derive(b"trace tests");
    TraceKeys::new(secret, BlockKey::from_u128(9), block_tokens).keys(ids)
}

#[test]
fn equal_prefixes_have_equal_keys_and_nothing_else_does() {
    let a = keys(512, &[1, 2, 3]);
    let b = keys(512, &[1, 2, 4, 3]);
    assert_eq!((a.len(), b.len()), (3, 4));
    assert_eq!(a[..2], b[..2]);
    assert_ne!(a[2], b[2]);
    assert_ne!(
        a[2], b[3],
        "the same id after another prefix is another block"
    );
}

#[test]
fn other_block_sizes_cut_the_same_tokens() {
    assert_eq!(keys(16, &[1, 2]).len(), 64);
    assert_eq!(keys(16, &[1, 2])[..32], keys(16, &[1, 3])[..32]);
    assert_eq!(
        keys(1024, &[1, 2, 3]).len(),
        1,
        "only complete blocks have a key"
    );
    assert_eq!(keys(300, &[1, 2]).len(), 3);
}
