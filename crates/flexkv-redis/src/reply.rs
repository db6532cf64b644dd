//! Takes the server's replies apart. What is not as we asked becomes an error or is left out, never
//! a panic: anybody may write into the server.

use bytes::Bytes;
use flexkv_ports::{LogEntry, LogRead, Renewal};
use fred::types::Value;

use crate::keys::Keys;

/// A reply that is not what the command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The answer of [`RENEW`](crate::scripts::RENEW).
pub(crate) fn renewal(reply: Value) -> Result<Renewal, Malformed> {
    let Value::Array(values) = reply else {
        return Err(Malformed);
    };
    match values[..] {
        [Value::Integer(lease), Value::Integer(log)] => Ok(Renewal {
            lease_kept: lease == 1,
            log_kept: log == 1,
        }),
        _ => Err(Malformed),
    }
}

/// The answer of SMEMBERS on the set of lease keys.
pub(crate) fn lease_keys(reply: Value) -> Result<Vec<String>, Malformed> {
    match reply {
        Value::Null => Ok(Vec::new()),
        Value::Array(keys) => Ok(keys.into_iter().filter_map(Value::into_string).collect()),
        _ => Err(Malformed),
    }
}

/// The answer of [`RECORDS`](crate::scripts::RECORDS) for `count` leases.
pub(crate) fn records(reply: Value, count: usize) -> Result<Vec<Option<Bytes>>, Malformed> {
    let Value::Array(mut values) = reply else {
        return Err(Malformed);
    };
    // The server ends an array at its last value that is not nil.
    if values.is_empty() || values.len() > count + 1 {
        return Err(Malformed);
    }
    values.resize(count + 1, Value::Null);
    // Copied: what came in one reply shares one buffer, and a record is kept for long.
    let records = values.drain(1..).map(Value::into_bytes);
    Ok(records
        .map(|record| record.map(|bytes| Bytes::copy_from_slice(&bytes)))
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
