//! Takes the server's replies apart. What is not as we asked becomes an error or is left out, never
//! a panic: anybody may write into the server.

use bytes::Bytes;
use flexkv_ports::{LogEntry, LogRead};
use fred::types::Value;

use crate::keys::Keys;

/// A reply that is not what the command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The answer of a script that says yes or no.
pub(crate) fn flag(reply: &Value) -> Result<bool, Malformed> {
    match reply {
        Value::Integer(0) => Ok(false),
        Value::Integer(1) => Ok(true),
        _ => Err(Malformed),
    }
}

/// What the script `NEWS` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The count of changes, as it is kept.
    pub(crate) changes: Option<Bytes>,
    /// Keys of leases that came or changed.
    pub(crate) changed: Vec<String>,
    /// Keys of leases that went.
    pub(crate) gone: Vec<String>,
}

/// The answer of the script `NEWS`.
pub(crate) fn news(reply: Value) -> Result<News, Malformed> {
    let Value::Array(parts) = reply else {
        return Err(Malformed);
    };
    let [changes, changed, gone] = <[Value; 3]>::try_from(parts).map_err(|_| Malformed)?;
    Ok(News {
        changes: changes.into_bytes(),
        changed: lease_keys(changed)?,
        gone: lease_keys(gone)?,
    })
}

fn lease_keys(reply: Value) -> Result<Vec<String>, Malformed> {
    match reply {
        Value::Array(keys) => Ok(keys.into_iter().filter_map(Value::into_string).collect()),
        _ => Err(Malformed),
    }
}

/// The answer of MGET for `count` keys.
pub(crate) fn values(reply: Value, count: usize) -> Result<Vec<Option<Bytes>>, Malformed> {
    let values = match reply {
        Value::Array(values) if values.len() == count => values,
        // The client library takes a list of one apart.
        Value::Null | Value::Bytes(_) | Value::String(_) if count == 1 => vec![reply],
        _ => return Err(Malformed),
    };
    // Copied: what came in one reply shares one buffer, and a record is kept for long.
    let values = values.into_iter().map(Value::into_bytes);
    Ok(values
        .map(|value| value.map(|bytes| Bytes::copy_from_slice(&bytes)))
        .collect())
}

/// The answer of XREAD.
pub(crate) fn logs(reply: Value, keys: &Keys) -> Result<Vec<LogRead>, Malformed> {
    match reply {
        Value::Null => Ok(Vec::new()),
        Value::Array(logs) => logs.into_iter().map(|log| self::log(log, keys)).collect(),
        _ => Err(Malformed),
    }
}

fn log(reply: Value, keys: &Keys) -> Result<LogRead, Malformed> {
    let (key, entries) = pair(reply)?;
    let key = key.into_string().ok_or(Malformed)?;
    let log = keys.log_name(&key).ok_or(Malformed)?.to_owned();
    let Value::Array(entries) = entries else {
        return Err(Malformed);
    };
    let mut entries = entries
        .into_iter()
        .map(entry)
        .collect::<Result<Vec<_>, _>>()?;
    entries.dedup_by_key(|entry| entry.sequence);
    Ok(LogRead { log, entries })
}

/// An entry that is not one of ours is passed on as empty bytes: no decoder takes them, and the
/// cursor gets past it.
fn entry(reply: Value) -> Result<LogEntry, Malformed> {
    let (id, fields) = pair(reply)?;
    let id = id.into_string().ok_or(Malformed)?;
    let (sequence, _) = id.split_once('-').ok_or(Malformed)?;
    let sequence = sequence.parse().map_err(|_| Malformed)?;
    let bytes = match fields {
        Value::Array(mut fields) if fields.len() == 2 => fields.pop().and_then(Value::into_bytes),
        _ => None,
    };
    let bytes = bytes.unwrap_or_default();
    Ok(LogEntry { sequence, bytes })
}

fn pair(reply: Value) -> Result<(Value, Value), Malformed> {
    let Value::Array(values) = reply else {
        return Err(Malformed);
    };
    let [first, second] = <[Value; 2]>::try_from(values).map_err(|_| Malformed)?;
    Ok((first, second))
}

#[cfg(test)]
mod tests;
