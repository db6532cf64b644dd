//! Who has a lease, in clusters small and large.

use bytes::Bytes;
use flexkv_ports::MetadataStore;
use flexkv_redis::RedisStore;
use flexkv_redis::local::LocalRedis;

use crate::server::{LONG, names, server, store, tell};

/// A key of ours that is no log.
fn key(name: &str) -> String {
    format!("flexkv:{{it:{:032x}}}:{name}", 1)
}

fn name(n: usize) -> String {
    format!("n{n:04}")
}

/// A number that the server counts.
async fn count(server: &LocalRedis, section: &str, field: &str) -> u64 {
    let info = tell(server, &format!("INFO {section}")).await;
    let line = info.lines().find_map(|line| line.strip_prefix(field));
    let rest = line.unwrap_or_else(|| panic!("{field} is not in:\n{info}"));
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|n| n.parse().ok()).expect("a number")
}

/// Takes leases of nodes numbered so.
async fn join(store: &RedisStore, nodes: std::ops::Range<usize>) {
    for n in nodes {
        let record = Bytes::from(vec![b'r'; 200]);
        let renewed = store.renew(&name(n), record, "l", LONG).await;
        renewed.expect("renew");
    }
}

#[tokio::test]
async fn a_member_may_have_any_name() {
    let server = server().await;
    let store = store(&server).await;
    let all = [
        "",
        "message",
        "subscribe",
        "sp ace",
        "{x}",
        "ä\r\n",
        "pmessage",
    ];
    for name in all {
        let record = Bytes::from(name);
        store.renew(name, record, "l", LONG).await.expect(name);
    }
    let mut members = store.members().await.expect("members");
    members.sort_by_key(|member| all.iter().position(|name| *name == member.name));
    let got: Vec<_> = members
        .iter()
        .map(|m| (&m.name[..], &m.record[..]))
        .collect();
    assert_eq!(got, all.map(|name| (name, name.as_bytes())));
}

#[tokio::test]
async fn members_may_be_many_and_some_are_gone() {
    let server = server().await;
    let store = store(&server).await;
    for n in 0..2100 {
        let (name, record) = (format!("n{n:04}"), Bytes::from(format!("r{n}")));
        let renewed = store.renew(&name, record, "l", LONG).await;
        renewed.expect("renew");
    }
    let gone = [0, 999, 1000, 1001, 2099];
    for n in gone {
        let lease = key(&format!("lease:n{n:04}"));
        assert_eq!(tell(&server, &format!("DEL {lease}")).await, ":1");
    }
    let mut members = store.members().await.expect("members");
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let live = (0..2100).filter(|n| !gone.contains(n));
    let expected: Vec<_> = live
        .map(|n| (format!("n{n:04}"), format!("r{n}")))
        .collect();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let got = members.iter().map(|m| (m.name.clone(), text(&m.record)));
    assert_eq!(got.collect::<Vec<_>>(), expected);
    let set = format!("ZCARD {}", key("members"));
    assert_eq!(tell(&server, &set).await, ":2095");
}

#[tokio::test]
async fn members_are_found_again_when_their_list_was_lost() {
    let server = server().await;
    let (other, store) = (store(&server).await, store(&server).await);
    for name in ["a", "b"] {
        let renewed = store.renew(name, Bytes::from(name), "l", LONG).await;
        renewed.expect("renew");
    }
    assert_eq!(names(&other).await, ["a", "b"]);
    let renewed = store.renew("c", Bytes::new(), "l", LONG).await;
    renewed.expect("renew");
    assert_eq!(names(&other).await, ["a", "b", "c"], "someone joined");
    store.leave("a", "l").await.expect("leave");
    assert_eq!(names(&other).await, ["b", "c"], "someone left");
    assert_eq!(
        tell(&server, &format!("DEL {}", key("changes"))).await,
        ":1"
    );
    let renewed = other.renew("d", Bytes::new(), "l", LONG).await;
    renewed.expect("renew");
    assert_eq!(names(&store).await, ["b", "c", "d"]);
    assert_eq!(names(&other).await, ["b", "c", "d"]);
}

#[tokio::test]
async fn a_list_of_many_costs_no_more_than_one_of_few() {
    let server = server().await;
    let (owner, store) = (store(&server).await, store(&server).await);
    let mut sent = Vec::new();
    for nodes in [16, 1000] {
        join(&owner, 0..nodes).await;
        assert_eq!(names(&store).await.len(), nodes);
        let before = count(&server, "stats", "total_net_output_bytes:").await;
        for _ in 0..20 {
            assert_eq!(names(&store).await.len(), nodes);
        }
        sent.push(count(&server, "stats", "total_net_output_bytes:").await - before);
    }
    // What the server sends besides is an answer to our question.
    assert!(sent[1] < sent[0] * 5 / 4 + 10_000, "{sent:?}");
    let calls = "cmdstat_mget:calls=";
    let before = count(&server, "commandstats", calls).await;
    names(&store).await;
    assert_eq!(count(&server, "commandstats", calls).await, before + 1);
}

#[tokio::test]
async fn whoever_finds_that_one_of_many_is_gone_tells_all() {
    let server = server().await;
    let owner = store(&server).await;
    join(&owner, 0..400).await;
    let mut stores = Vec::new();
    for _ in 0..4 {
        let store = store(&server).await;
        assert_eq!(names(&store).await.len(), 400);
        stores.push(store);
    }
    let lease = key(&format!("lease:{}", name(7)));
    assert_eq!(tell(&server, &format!("DEL {lease}")).await, ":1");
    // Alone, one store looks at all of them in 400 / 16 lists.
    let mut lists = 0;
    while names(&stores[0]).await.contains(&name(7)) {
        lists += 1;
        assert!(lists <= 26, "not found in its turn");
    }
    for store in &stores[1..] {
        assert_eq!(names(store).await.len(), 399, "it was told");
    }
    owner.leave(&name(8), "l").await.expect("leave");
    for store in &stores {
        assert_eq!(names(store).await.len(), 398, "one left");
    }
    tell(
        &server,
        &format!("DEL {}", key(&format!("lease:{}", name(9)))),
    )
    .await;
    join(&owner, 9..10).await;
    for store in &stores {
        assert!(names(store).await.contains(&name(9)), "it came back");
    }
}

#[tokio::test]
async fn a_record_that_changed_among_many_is_in_the_next_list() {
    let server = server().await;
    let (owner, store) = (store(&server).await, store(&server).await);
    join(&owner, 0..200).await;
    assert_eq!(names(&store).await.len(), 200);
    for n in [0, 100, 199] {
        let record = Bytes::from(format!("new {n}"));
        let renewed = owner.renew(&name(n), record.clone(), "l", LONG).await;
        assert!(renewed.expect("renew").lease_kept);
        let members = store.members().await.expect("members");
        let found = members.iter().find(|member| member.name == name(n));
        assert_eq!(found.map(|member| &member.record), Some(&record));
    }
}

#[tokio::test]
async fn a_count_of_changes_that_went_back_hides_nobody() {
    let server = server().await;
    let (owner, store) = (store(&server).await, store(&server).await);
    join(&owner, 0..3).await;
    assert_eq!(names(&store).await.len(), 3);
    let kept = tell(&server, &format!("GET {}", key("changes"))).await;
    let kept = kept.lines().last().expect("a text").to_owned();
    join(&owner, 3..5).await;
    assert_eq!(names(&store).await.len(), 5);
    // As after a failover to a replica that had not everything.
    for n in 3..5 {
        let lease = key(&format!("lease:{}", name(n)));
        tell(&server, &format!("DEL {lease}")).await;
        tell(&server, &format!("ZREM {} {lease}", key("members"))).await;
    }
    tell(&server, &format!("SET {} {kept}", key("changes"))).await;
    assert_eq!(names(&store).await.len(), 3);
    join(&owner, 5..9).await;
    assert_eq!(names(&store).await.len(), 7);
    // Nonsense is no count.
    tell(&server, &format!("SET {} nonsense", key("changes"))).await;
    assert_eq!(names(&store).await.len(), 7);
    join(&owner, 9..10).await;
    assert_eq!(names(&store).await.len(), 8);
}

#[tokio::test]
async fn many_that_go_at_once_are_found_sooner_or_later() {
    let server = server().await;
    let (owner, store) = (store(&server).await, store(&server).await);
    join(&owner, 0..700).await;
    assert_eq!(names(&store).await.len(), 700);
    // More than are remembered to have gone.
    for n in 0..600 {
        owner.leave(&name(n), "l").await.expect("leave");
    }
    let mut lists = 0;
    while names(&store).await.len() > 100 {
        lists += 1;
        assert!(lists <= 700 / 16 + 2, "some were never looked at");
    }
    let gone = tell(&server, &format!("ZCARD {}", key("gone"))).await;
    assert_eq!(gone, ":256");
}
