//! From the server's and the client library's errors to what the caller does next.
//!
//! Sorted by the server's error codes; messages are passed on as they are, after the address.
//! Neither ever holds a password: the server does not repeat it, and we never format one.

use flexkv_ports::StoreError;
use fred::error::{Error, ErrorKind};

/// The server asks for credentials, or forbids what we ask.
const DENIED: [&str; 3] = ["NOAUTH", "WRONGPASS", "NOPERM"];
/// The server takes no writes until it has memory, disk or replicas again.
const FULL: [&str; 3] = ["OOM", "MISCONF", "NOREPLICAS"];

/// The server is part of a cluster and another one has, or will have, what was asked for.
const ELSEWHERE: [&str; 4] = ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"];
/// The server does not have the role that it had when we connected.
const DEMOTED: [&str; 2] = ["READONLY", "UNBLOCKED"];

/// A command that was not done.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// For the caller.
    pub(crate) error: StoreError,
    /// Another server of the cluster may do it.
    pub(crate) elsewhere: bool,
}

impl Failed {
    /// Sorts `error`, which came while talking to the server at `address`.
    pub(crate) fn sort(address: &str, error: &Error) -> Self {
        Self {
            error: sort(address, error),
            elsewhere: has_code(error, &ELSEWHERE),
        }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        let elsewhere = false;
        Self { error, elsewhere }
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// Sorts `error`, which came while talking to the server at `address`.
pub(crate) fn sort(address: &str, error: &Error) -> StoreError {
    let reason = reason(address, error);
    if *error.kind() == ErrorKind::Auth || has_code(error, &DENIED) {
        StoreError::Denied { reason }
    } else if has_code(error, &FULL) {
        StoreError::Full { reason }
    } else {
        StoreError::Unavailable { reason }
    }
}

/// Whether another server may have taken over, which only a new connection would find.
pub(crate) fn costs_the_connection(error: &Error) -> bool {
    has_code(error, &DEMOTED)
}

/// The server at `address` did not do `what`.
pub(crate) fn unavailable(address: &str, what: &str) -> StoreError {
    let reason = format!("redis at {address}: {what}");
    StoreError::Unavailable { reason }
}

fn reason(address: &str, error: &Error) -> String {
    format!("redis at {address}: {}", in_words(error.details()))
}

/// The client library shows errors of the operating system as `Os { …, message: "…" }` and those of
/// TLS as `Custom { …, error: … }`.
fn in_words(details: &str) -> &str {
    if let Some(rest) = details.strip_prefix("Custom {") {
        let error = rest.split_once("error: ").map(|(_, error)| error);
        return error.map_or(details, |error| error.trim_end_matches('}').trim_end());
    }
    let message = details
        .strip_prefix("Os {")
        .and_then(|fields| fields.split_once("message: \""))
        .and_then(|(_, message)| message.split_once('"'));
    message.map_or(details, |(message, _)| message)
}

/// Whether the server's error is one of `codes`. Old servers put the code of an error in a script
/// behind words of their own and a dash.
fn has_code(error: &Error, codes: &[&str]) -> bool {
    let words = error.details().split_whitespace();
    let mut words = words.map(|word| word.trim_start_matches('-'));
    match words.next() {
        Some("ERR" | "@user_script:") => words.any(|word| codes.contains(&word)),
        Some(first) => codes.contains(&first),
        None => false,
    }
}

#[cfg(test)]
mod tests;
