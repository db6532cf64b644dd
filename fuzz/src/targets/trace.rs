//! Request traces: what is wrong is told with its line, and every request gets its keys.
//!
//! Knows nothing of replaying.

use flexkv::trace::{TRACE_BLOCK_TOKENS, TraceError, TraceKeys, read_from};
use flexkv_block::{BlockKey, ClusterSecret};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "trace",
    run,
    seeds,
};

/// Ids of which keys are made; hashing more finds nothing new.
const MAX_IDS: usize = 4;

fn run(data: &[u8]) {
    match read_from(data, "trace.jsonl", None) {
        Ok(requests) => {
            assert!(!requests.is_empty());
            let root = BlockKey::from_u128(1);
            let keys = TraceKeys::new(ClusterSecret::derive(b"fuzz"), root, TRACE_BLOCK_TOKENS);
            for request in requests.iter().take(2) {
                let ids = &request.hash_ids[..request.hash_ids.len().min(MAX_IDS)];
                assert_eq!(keys.keys(ids).len(), ids.len());
            }
        }
        Err(error) => {
            assert!(error.to_string().contains("trace.jsonl"), "{error}");
            if let TraceError::Line { line, .. } = error {
                let lines = data.split(|byte| *byte == b'\n').count();
                assert!((1..=lines).contains(&line), "line {line} of {lines}");
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let request =
        r#"{"timestamp": 27, "input_length": 1030, "output_length": 5, "hash_ids": [0, 7, 9]}"#;
    let texts = [
        request.to_owned(),
        format!("{request}\n\n{request}\n"),
        format!("{request}\n{{\"timestamp\": -1}}\n"),
    ];
    texts.map(String::into_bytes).to_vec()
}
