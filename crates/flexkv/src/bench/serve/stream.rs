//! Reads a streamed completion: server-sent events, each a JSON object with some of the answer.
//! Knows nothing of connections and clocks.

use serde::Deserialize;
use serde_json::Value;

/// Longest event that is read.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// What an answer says when it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Completion {
    /// The answer's tokens, from servers that tell them.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, as the server counts.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts.
    pub answer_tokens: Option<u64>,
    /// Prompt tokens that were not computed, from servers that tell.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens that came from the cache node, from servers that tell.
    pub node_tokens: Option<u64>,
}

/// The state of reading one answer.
#[derive(Debug, Default)]
pub(super) struct Stream {
    buffer: Vec<u8>,
    completion: Completion,
    begun: bool,
    done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
    kv_transfer_params: Option<TransferParams>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct TransferParams {
    flexkv_hit_tokens_local: Option<u64>,
    flexkv_hit_tokens_remote: Option<u64>,
}

impl Stream {
    /// Reads more bytes. An error is what the server says instead of an answer, or what is wrong
    /// with the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = self.buffer[at..].iter().position(|&byte| byte == b'\n') {
            let line = self.buffer[at..at + length].to_vec();
            at += length + 1;
            self.line(line.trim_ascii())?;
        }
        self.buffer.drain(..at);
        if self.buffer.len() > MAX_EVENT_BYTES {
            return Err(format!("an event of more than {MAX_EVENT_BYTES} bytes"));
        }
        Ok(())
    }

    /// Whether the first token has come.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// The answer, once the server has said that it is done.
    pub(super) fn finish(self) -> Result<Completion, String> {
        match (self.done, self.begun) {
            (false, _) => Err("the answer breaks off".to_owned()),
            (true, false) => Err("the answer is empty".to_owned()),
            (true, true) => Ok(self.completion),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        // Other lines are comments or name events, which completions do not.
        let Some(data) = line.strip_prefix(b"data:") else {
            return Ok(());
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk = serde_json::from_slice(data)
            .map_err(|error| format!("an event is not what was expected: {error}"))?;
        self.chunk(chunk)
    }

    fn chunk(&mut self, chunk: Chunk) -> Result<(), String> {
        if let Some(error) = chunk.error {
            return Err(said(&error));
        }
        for choice in chunk.choices {
            let text = choice.text.is_some_and(|text| !text.is_empty());
            let tokens = choice.token_ids.unwrap_or_default();
            self.begun |= text || !tokens.is_empty();
            self.completion.tokens.extend(tokens);
        }
        if let Some(usage) = chunk.usage {
            let details = usage.prompt_tokens_details;
            self.completion.prompt_tokens = usage.prompt_tokens;
            self.completion.answer_tokens = usage.completion_tokens;
            self.completion.cached_tokens = details.and_then(|details| details.cached_tokens);
        }
        if let Some(params) = chunk.kv_transfer_params {
            let (local, remote) = (
                params.flexkv_hit_tokens_local,
                params.flexkv_hit_tokens_remote,
            );
            if local.is_some() || remote.is_some() {
                self.completion.node_tokens =
                    Some(local.unwrap_or_default() + remote.unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// The text of an error in an answer, `{"message": ...}` or anything else.
pub(super) fn said(error: &Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    match inner.get("message").and_then(Value::as_str) {
        Some(message) => message.to_owned(),
        None => inner.to_string(),
    }
}

#[cfg(test)]
mod tests;
