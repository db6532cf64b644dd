//! All that is made of a server's answers, at once: for whoever wants to know what some answer would be
//! taken for. Answers come from outside, and anybody may write into the server.
//!
//! Knows nothing of what was asked.

use bytes::Bytes;
use flexkv_block::NamespaceId;
use flexkv_ports::LogRead;
use fred::types::Value;
use fred::types::config::Server;

use crate::keys::Keys;
use crate::{cluster, reply};

/// What an answer would be taken for, by the command that it answers; `None` if it would be refused.
#[derive(Clone, Debug)]
pub struct Understood {
    /// A script's yes or no.
    pub flag: Option<bool>,
    /// The script that tells what changed among the leases: keys of those that came or changed, and of those that went.
    pub leases: Option<(Vec<String>, Vec<String>)>,
    /// MGET of as many keys as the answer has values.
    pub records: Option<Vec<Option<Bytes>>>,
    /// XREAD.
    pub logs: Option<Vec<LogRead>>,
    /// CLUSTER SLOTS: first and last slot of a range, and the address of who has it.
    pub slots: Option<Vec<(u16, u16, String)>>,
}

/// What a server's answer would be taken for in `cluster`, whose namespace is all zeros; `asked` is the
/// server's address.
pub fn understand(answer: &Value, cluster: &str, asked: &str) -> Understood {
    let keys = Keys::new(cluster, NamespaceId::from_u128(0));
    let (host, port) = asked.rsplit_once(':').unwrap_or((asked, ""));
    let asked = Server::new(host, port.parse().unwrap_or_default());
    let count = match answer {
        Value::Array(values) => values.len(),
        _ => 1,
    };
    let slots = cluster::parse(answer.clone(), &asked);
    let named = |(first, last, server): (u16, u16, Server)| (first, last, server.to_string());
    Understood {
        flag: reply::flag(answer).ok(),
        leases: reply::news(answer.clone())
            .ok()
            .map(|news| (news.changed, news.gone)),
        records: reply::values(answer.clone(), count).ok(),
        logs: reply::logs(answer.clone(), &keys).ok(),
        slots: slots.map(|slots| slots.into_iter().map(named).collect()),
    }
}
