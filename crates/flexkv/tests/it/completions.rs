//! A small server of the OpenAI API to point benchmarks at: says what it is told, as fast or slow as
//! it is told, and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How a server answers completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// With as many tokens as it is asked for.
    Well,
    /// Likewise, the first token after a while and the last after another.
    Slowly(Duration),
    /// With status 503.
    Refusing,
    /// Ends in mid-answer.
    BreakingOff,
    /// With an error where a token was expected.
    Failing,
}

/// The token that every answer consists of.
pub(crate) const ANSWER_TOKEN: u32 = 9;
/// The longest prompt and answer that the model takes.
pub(crate) const MODEL_LENGTH: usize = 4000;

/// A running server; ends when dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Servers on consecutive ports, one for each of `manners`.
    pub(crate) async fn start_all<const N: usize>(manners: [Manner; N]) -> [Self; N] {
        let listeners = consecutive(N).await;
        let mut servers = listeners
            .into_iter()
            .zip(manners)
            .map(|(listener, manner)| {
                let port = listener.local_addr().unwrap().port();
                let asked = Arc::new(Mutex::new(Vec::new()));
                let task = tokio::spawn(accept(listener, manner, asked.clone()));
                Self { port, asked, task }
            });
        std::array::from_fn(|_| servers.next().unwrap())
    }

    /// The completions that were asked for.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Their prompts.
    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        let prompt = |asked: Value| serde_json::from_value(asked["prompt"].clone()).unwrap();
        self.asked().into_iter().map(prompt).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `count` consecutive free ports of this host.
async fn consecutive(count: usize) -> Vec<TcpListener> {
    'again: loop {
        let mut listeners = vec![TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let first = listeners[0].local_addr().unwrap().port();
        for number in 1..count {
            let port = first.checked_add(u16::try_from(number).unwrap());
            let Some(port) = port else { continue 'again };
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => listeners.push(listener),
                Err(_) => continue 'again,
            }
        }
        return listeners;
    }
}

async fn accept(listener: TcpListener, manner: Manner, asked: Arc<Mutex<Vec<Value>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let asked = asked.clone();
        tokio::spawn(async move {
            // A client that goes away has its reasons.
            let _ = answer(stream, manner, &asked).await;
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    manner: Manner,
    asked: &Mutex<Vec<Value>>,
) -> std::io::Result<()> {
    let (path, body) = request(&mut stream).await?;
    match path.as_str() {
        "/v1/models" => {
            let models = json!({"data": [{"id": "tiny", "max_model_len": MODEL_LENGTH}]});
            whole(&mut stream, "200 OK", &models.to_string()).await
        }
        "/metrics" => {
            // Half of all prompts that came before are said to have been hits of two kinds.
            let tokens: usize = asked.lock().unwrap().iter().map(prompt_tokens).sum();
            let text = format!(
                "# HELP x\nvllm:prefix_cache_hits_total{{engine=\"0\"}} {}\n\
                 vllm:external_prefix_cache_hits_total{{engine=\"0\"}} {}\n",
                tokens / 4,
                tokens / 4
            );
            whole(&mut stream, "200 OK", &text).await
        }
        "/v1/completions" => {
            let wanted: Value = serde_json::from_slice(&body).unwrap();
            asked.lock().unwrap().push(wanted.clone());
            complete(&mut stream, manner, &wanted).await
        }
        _ => whole(&mut stream, "404 Not Found", "").await,
    }
}

fn prompt_tokens(asked: &Value) -> usize {
    asked["prompt"].as_array().unwrap().len()
}

async fn complete(stream: &mut TcpStream, manner: Manner, asked: &Value) -> std::io::Result<()> {
    if manner == Manner::Refusing {
        let error = json!({"error": {"message": "come back later"}});
        return whole(stream, "503 Service Unavailable", &error.to_string()).await;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let tokens = asked["max_tokens"].as_u64().unwrap();
    for number in 0..tokens {
        if let Manner::Slowly(pause) = manner
            && (number == 0 || number == tokens - 1)
        {
            sleep(pause).await;
        }
        let chunk = match manner {
            Manner::Failing if number == 1 => json!({"error": {"message": "out of luck"}}),
            _ => json!({"choices": [{"text": " w", "token_ids": [ANSWER_TOKEN]}]}),
        };
        event(stream, &chunk.to_string()).await?;
    }
    if manner == Manner::BreakingOff {
        return Ok(());
    }
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": prompt_tokens(asked),
        "completion_tokens": tokens,
    }});
    event(stream, &usage.to_string()).await?;
    event(stream, "[DONE]").await
}

async fn event(stream: &mut TcpStream, data: &str) -> std::io::Result<()> {
    stream
        .write_all(format!("data: {data}\n\n").as_bytes())
        .await
}

async fn whole(stream: &mut TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await
}

/// The path and body of the request that comes.
async fn request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |length| length.trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                return Ok((path, bytes[end + 4..].to_vec()));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
