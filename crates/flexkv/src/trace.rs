//! Reads request traces in the Mooncake JSONL form and turns their block ids into block keys.
//!
//! One JSON object a line: `timestamp` (ms), `input_length` and `output_length` (tokens), `hash_ids`
//! (one id per 512-token block of the prompt; equal ids mean equal prefixes up to there). Format:
//! github.com/kvcache-ai/Mooncake, `FAST25-release`. Other fields are ignored. Knows nothing of
//! who replays a trace.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flexkv_block::{BlockKey, ClusterSecret, KeyChain, TokenId};
use serde::Deserialize;
use thiserror::Error;

use crate::content::splitmix;

/// Tokens that one id of a trace stands for.
pub const TRACE_BLOCK_TOKENS: usize = 512;

/// No line of a trace is longer; a longer one means that the file is something else.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// One request of a trace.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct TraceRequest {
    /// When it arrived, in ms since the trace began.
    pub timestamp: u64,
    /// Tokens of its prompt.
    pub input_length: u64,
    /// Tokens of its answer.
    pub output_length: u64,
    /// Its prompt's blocks.
    pub hash_ids: Vec<u64>,
}

/// Why a trace cannot be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be opened or read.
    #[error("cannot read the trace {file}: {reason}")]
    Io {
        /// The file's path.
        file: String,
        /// What the system says.
        reason: std::io::Error,
    },
    /// A line is not a request.
    #[error("{file}:{line}: {reason}")]
    Line {
        /// The file's path.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no request in the file.
    #[error("the trace {file} has no requests")]
    Empty {
        /// The file's path.
        file: String,
    },
}

/// Reads the first `limit` requests of the trace at `path`, or all.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<TraceRequest>, TraceError> {
    let file = path.display().to_string();
    match File::open(path) {
        Ok(opened) => read_from(BufReader::new(opened), &file, limit),
        Err(reason) => Err(TraceError::Io { file, reason }),
    }
}

/// Reads a trace from `input`; `file` is its name in errors. Empty lines are skipped.
pub fn read_from(
    mut input: impl BufRead,
    file: &str,
    limit: Option<usize>,
) -> Result<Vec<TraceRequest>, TraceError> {
    let mut requests = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        if limit.is_some_and(|limit| requests.len() >= limit) {
            break;
        }
        bytes.clear();
        let read = input
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
            .map_err(|reason| TraceError::Io {
                file: file.to_owned(),
                reason,
            })?;
        if read == 0 {
            break;
        }
        if let Some(request) = parse_line(&bytes).map_err(|reason| TraceError::Line {
            file: file.to_owned(),
            line,
            reason,
        })? {
            requests.push(request);
        }
    }
    if requests.is_empty() {
        return Err(TraceError::Empty {
            file: file.to_owned(),
        });
    }
    Ok(requests)
}

/// The request in one line; `None` if the line is empty.
pub fn parse_line(line: &[u8]) -> Result<Option<TraceRequest>, String> {
    if line.len() as u64 >= MAX_LINE_BYTES {
        return Err(format!("line of more than {MAX_LINE_BYTES} bytes"));
    }
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(line).map(Some).map_err(|error| {
        // The error's own position counts lines of this one line.
        let column = error.column();
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        format!("column {column}: {what}")
    })
}

/// Gives a trace's ids tokens, and the tokens keys.
///
/// Every id stands for 512 tokens of its own, so equal prefixes get equal keys whatever the block
/// size. A trace does not say what two different ids have in common: with blocks of less than 512
/// tokens, reuse inside of an id's block is not seen. A prompt's last, incomplete id counts as
/// complete, as the trace itself counts.
pub struct TraceKeys {
    secret: ClusterSecret,
    root: BlockKey,
    block_tokens: usize,
}

impl TraceKeys {
    /// Keys under `root`, for blocks of `block_tokens` tokens.
    pub fn new(secret: ClusterSecret, root: BlockKey, block_tokens: usize) -> Self {
        Self {
            secret,
            root,
            block_tokens,
        }
    }

    /// The keys of the complete blocks of a prompt.
    pub fn keys(&self, hash_ids: &[u64]) -> Vec<BlockKey> {
        let mut chain = KeyChain::new(&self.secret, self.root, self.block_tokens);
        let mut keys = Vec::new();
        for id in hash_ids {
            let tokens: [TokenId; TRACE_BLOCK_TOKENS] =
                std::array::from_fn(|i| splitmix(*id, i as u64) as TokenId);
            chain.extend(&tokens, &mut keys);
        }
        keys
    }
}

#[cfg(test)]
mod tests;
