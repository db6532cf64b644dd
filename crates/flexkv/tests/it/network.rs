//! How nodes reach each other: through memory of their host, over TCP, inside TLS, or not at all.

use flexkv_redis::local::LocalRedis;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;

use crate::harness::{Home, until};
use crate::node::{NodeProcess, keys, load, store};

/// Writes an authority's certificate, and one of it for nodes at 127.0.0.1 with its key.
fn certificates(home: &Home) {
    let mut params = CertificateParams::new([]).expect("good names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
    home.write("ca.pem", &authority.pem());
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("good names");
    let key = KeyPair::generate().expect("a key");
    let node = params.signed_by(&key, &authority).expect("signed");
    home.write("node.pem", &node.pem());
    home.write("node.key", &key.serialize_pem());
}

/// The settings of a node with these certificates.
fn tls(home: &Home) -> String {
    let path = |name: &str| home.path(name).display().to_string();
    format!(
        "network.tls_certificate_file = '{}'\nnetwork.tls_key_file = '{}'\n\
         network.tls_ca_file = '{}'",
        path("node.pem"),
        path("node.key"),
        path("ca.pem")
    )
}

/// Two nodes that see each other, the second with other settings in place of `more`.
fn nodes(home: &Home, redis: &LocalRedis, more: &str, second: &str) -> [NodeProcess; 2] {
    let url = format!("redis.url = '{}'", redis.url());
    let nodes = [("a", more), ("b", second)]
        .map(|(name, more)| NodeProcess::start(home, name, &format!("{url}\n{more}")));
    nodes.iter().for_each(|node| node.sees(1));
    nodes
}

/// Blocks that node `a` has sent over the network.
async fn served(a: &NodeProcess) -> String {
    let metrics = a.metrics().await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("flexkv_served_blocks_total"));
    line.and_then(|line| line.split(' ').next_back())
        .unwrap_or("none")
        .to_owned()
}

/// Checks that `b` loads what `a` stored, and that `a` sent `sent` of it over the network.
async fn shares(more: &str, home: &Home, scheme: &str, sent: &str) {
    let redis = LocalRedis::start().await.unwrap();
    let [a, b] = nodes(home, &redis, more, more);
    assert!(a.ready["endpoint"].as_str().unwrap().starts_with(scheme));
    let (at_a, at_b) = (a.attach().await, b.attach().await);
    let keys = keys(1, 8);
    store(&at_a, &keys).await;
    until("b loads a's blocks", async || {
        load(&at_b, &keys).await == (8, 8)
    })
    .await;
    until("a has counted them", async || served(&a).await == sent).await;
    drop((at_a, at_b));
    a.end(Signal::TERM).await;
    b.end(Signal::TERM).await;
}

#[tokio::test]
async fn nodes_of_one_host_need_no_network() {
    shares("", &Home::new(), "tcp://127.0.0.1:", "0").await;
}

#[tokio::test]
async fn nodes_use_the_network_if_memory_is_not_to_be_shared() {
    let more = "network.shared_memory = false";
    shares(more, &Home::new(), "tcp://127.0.0.1:", "8").await;
}

#[tokio::test]
async fn nodes_share_inside_tls() {
    let home = Home::new();
    certificates(&home);
    let more = format!("network.shared_memory = false\n{}", tls(&home));
    shares(&more, &home, "tls://127.0.0.1:", "8").await;
}

#[test]
fn tls_is_measured_beside_the_others() {
    let home = Home::new();
    certificates(&home);
    let few = "--sizes 64KiB --batch 4 --time 20ms --rounds 1 --memory 4MiB --json";
    let files = "--tls-certificate-file node.pem --tls-key-file node.key --tls-ca-file ca.pem";
    let rows = home.run(&format!("bench transport {few} {files}")).json();
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "tls 64.0 KiB x 4");
    assert!(row.unwrap()["value"].as_f64().unwrap() > 0.0);
}

/// Nothing encrypts what RDMA carries, so a node does not have both.
#[test]
fn tls_and_rdma_exclude_each_other() {
    let home = Home::new();
    certificates(&home);
    let rdma = "network.rdma_port = 7499";
    let both = format!("{}\n{rdma}", tls(&home));
    let refused = "`network.rdma_port` cannot stand beside TLS";
    for (more, is_refused) in [(both.as_str(), true), (rdma, false)] {
        crate::node::configure(&home, "a", more);
        let done = home.run("node --config a.toml --check");
        assert_eq!(done.err.contains(refused), is_refused, "{}", done.err);
        assert!(done.code == Some(1) || !is_refused, "{}", done.out);
    }
    crate::node::configure(&home, "a", &tls(&home));
    let done = home.run("node --config a.toml --check");
    assert_eq!(done.code, Some(0), "{}", done.err);
}

/// It loads nothing, and the owner says why.
#[tokio::test]
async fn a_node_with_another_secret_gets_nothing_and_is_counted() {
    for (memory, transport) in [("true", "shm"), ("false", "tcp")] {
        let home = Home::new();
        let redis = LocalRedis::start().await.unwrap();
        let more = format!("network.shared_memory = {memory}");
        let url = format!("redis.url = '{}'\n{more}", redis.url());
        let a = NodeProcess::start(&home, "a", &url);
        let path = crate::node::configure(&home, "b", &url);
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.replace("secret = 'it'", "secret = 'other'");
        let b = NodeProcess::start_as(&home, "b", &text);
        b.sees(1);
        let (at_a, at_b) = (a.attach().await, b.attach().await);
        let keys = keys(1, 8);
        store(&at_a, &keys).await;
        let refused = format!(
            "flexkv_peer_refusals_total{{node=\"a\",transport=\"{transport}\",reason=\"secret\"}} "
        );
        until("a counts its refusals", async || {
            assert_eq!(load(&at_b, &keys).await, (0, 0));
            let metrics = a.metrics().await;
            let line = metrics.lines().find_map(|line| line.strip_prefix(&refused));
            line.is_some_and(|count| count != "0")
        })
        .await;
        drop((at_a, at_b));
        a.end(Signal::TERM).await;
        b.end(Signal::TERM).await;
    }
}
