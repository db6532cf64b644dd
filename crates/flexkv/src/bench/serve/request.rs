//! One request: sends a prompt to an instance and times its answer. Knows nothing of workloads.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::stream::{Completion, Stream, said};
use super::workload::Prompt;
use crate::http::{BaseUrl, Http, HttpError, deepest, read};

/// An instance to send requests to.
pub(super) struct Target {
    pub(super) http: Http,
    pub(super) base: BaseUrl,
    pub(super) model: String,
    pub(super) answered_within: Duration,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens; those of the workload's choice where the server tells none.
    pub tokens: Vec<u32>,
    /// From sending the request to the first token.
    pub first_token: Duration,
    /// From sending the request to the end.
    pub total: Duration,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub answer_tokens: u64,
    /// Prompt tokens that were not computed, from servers that tell.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens that came from the cache node, from servers that tell.
    pub node_tokens: Option<u64>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The connection.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server refuses the request.
    #[error("refused with status {status}: {text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// The answer is broken.
    #[error("{0}")]
    Broken(String),
}

impl Target {
    /// Sends `prompt` and reads the answer.
    pub(super) async fn ask(&self, prompt: &Prompt) -> Result<Answer, Failure> {
        match timeout(self.answered_within, self.exchange(prompt)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Late(self.answered_within).into()),
        }
    }

    async fn exchange(&self, prompt: &Prompt) -> Result<Answer, Failure> {
        let url = format!("{}/v1/completions", self.base);
        let body = self.body(prompt).to_string().into_bytes();
        let began = Instant::now();
        let (status, mut body) = self.http.post(&url, body).await?;
        if status != StatusCode::OK {
            return Err(refused(status, &read(body).await?));
        }
        let mut stream = Stream::default();
        let mut first_token = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| HttpError::Lost(deepest(&error)))?;
            if let Ok(bytes) = frame.into_data() {
                stream.push(&bytes).map_err(Failure::Broken)?;
            }
            if stream.begun() && first_token.is_none() {
                first_token = Some(began.elapsed());
            }
        }
        let total = began.elapsed();
        let completion = stream.finish().map_err(Failure::Broken)?;
        let first_token = first_token.unwrap_or(total);
        Ok(answer(prompt, completion, first_token, total))
    }

    fn body(&self, prompt: &Prompt) -> Value {
        json!({
            "model": self.model,
            "prompt": prompt.tokens,
            "max_tokens": prompt.answer_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
            "return_token_ids": true,
        })
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(error) => said(&error),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = text.trim().chars().take(300).collect();
    let status = status.as_u16();
    Failure::Refused { status, text }
}

fn answer(
    prompt: &Prompt,
    completion: Completion,
    first_token: Duration,
    total: Duration,
) -> Answer {
    let told = completion.tokens.len();
    let tokens = if told == 0 {
        // What comes next repeats the prompt's first tokens instead of the answer.
        let stand_in = prompt.tokens.iter().cycle();
        stand_in.take(prompt.answer_tokens).copied().collect()
    } else {
        completion.tokens
    };
    Answer {
        answer_tokens: completion.answer_tokens.unwrap_or(tokens.len() as u64),
        prompt_tokens: completion
            .prompt_tokens
            .unwrap_or(prompt.tokens.len() as u64),
        cached_tokens: completion.cached_tokens,
        node_tokens: completion.node_tokens,
        tokens,
        first_token,
        total,
    }
}
