//! Node processes on every kind of server that users run: a cluster, one that a sentinel watches, one
//! with TLS and a user of ours. That the store keeps its promises there is tested with the store; here
//! nodes share blocks through it, and no owner is lost when a master dies.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use flexkv_redis::local::{LocalRedis, program};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::{Duration, sleep};

use crate::harness::{Home, until};
use crate::node::{NodeProcess, keys, load, store};

/// What `redis-cli` prints.
fn ask(port: u16, command: &str) -> String {
    let done = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(command.split(' '))
        .output()
        .expect("redis-cli comes with redis-server");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Two nodes on one store.
struct Pair {
    _home: Home,
    a: NodeProcess,
    b: NodeProcess,
}

impl Pair {
    fn start(home: Home, store: &str) -> Self {
        let [a, b] = ["a", "b"].map(|name| NodeProcess::start(&home, name, store));
        a.sees(1);
        b.sees(1);
        Self { _home: home, a, b }
    }

    /// Asserts that each loads what the other stores.
    async fn share(&self, first: u128) {
        let (at_a, at_b) = (self.a.attach().await, self.b.attach().await);
        for (from, to, first) in [(&at_a, &at_b, first), (&at_b, &at_a, first + 10)] {
            let keys = keys(first, 4);
            store(from, &keys).await;
            until("the other loads it", async || load(to, &keys).await.0 == 4).await;
        }
    }

    async fn nobody_was_lost(&self) {
        for (node, name) in [(&self.a, "a"), (&self.b, "b")] {
            let metrics = node.metrics().await;
            let gone = format!("flexkv_peer_events_total{{node=\"{name}\",event=\"gone\"}} 0");
            assert!(metrics.lines().any(|line| line == gone), "{metrics}");
        }
    }
}

#[tokio::test]
async fn nodes_share_over_a_cluster_of_three_masters() {
    let mut masters = Vec::new();
    for _ in 0..3 {
        // Servers of a cluster talk over the port 10,000 above.
        let free = |port: &u16| {
            let both = [*port, *port + 10_000];
            both.iter()
                .all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        };
        let mut ports = std::iter::repeat_with(|| fastrand::u16(10_000..22_000));
        let lines = "cluster-enabled yes\ncluster-node-timeout 1000\n";
        let master = LocalRedis::start_configured(ports.find(free), lines).await;
        masters.push(master.unwrap());
    }
    let addresses: Vec<_> = masters
        .iter()
        .map(|master| format!("127.0.0.1:{}", master.port()))
        .collect();
    let create = format!("--cluster create {} --cluster-yes", addresses.join(" "));
    let said = ask(masters[0].port(), &create);
    assert!(said.contains("All 16384 slots covered"), "{said}");
    for master in &masters {
        until("the cluster is formed", async || {
            ask(master.port(), "CLUSTER INFO").contains("cluster_state:ok")
        })
        .await;
    }
    let url = format!("redis.url = 'redis-cluster://{}'", addresses[1]);
    let pair = Pair::start(Home::new(), &url);
    for round in 0..5 {
        pair.share(100 * round).await;
    }
    pair.nobody_was_lost().await;
}

/// A sentinel; killed when dropped.
struct Sentinel(Child);

impl Drop for Sentinel {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn nodes_go_on_with_the_master_that_a_sentinel_names() {
    let home = Home::new();
    let mut master = LocalRedis::start().await.unwrap();
    let lines = format!("replicaof 127.0.0.1 {}\n", master.port());
    let replica = LocalRedis::start_configured(None, &lines).await.unwrap();
    let port = free_port();
    let lines = format!(
        "bind 127.0.0.1\nport {port}\ndir \"{}\"\nlogfile \"\"\n\
         sentinel monitor main 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
        home.path("").display(),
        master.port(),
    );
    let file = home.write("sentinel.conf", &lines);
    let mut sentinel = Command::new(program());
    sentinel.arg(file).arg("--sentinel");
    sentinel.stdin(Stdio::null()).stdout(Stdio::null());
    let _sentinel = Sentinel(sentinel.spawn().unwrap());
    until("the sentinel knows the replica", async || {
        ask(port, "SENTINEL REPLICAS main").contains(&replica.port().to_string())
    })
    .await;
    let url = format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=main");
    let pair = Pair::start(home, &format!("redis.url = '{url}'"));
    pair.share(1).await;
    master.kill();
    pair.share(100).await;
    assert!(ask(replica.port(), "INFO replication").contains("role:master"));
    // Longer than a lease: nobody was taken for dead meanwhile.
    sleep(Duration::from_secs(8)).await;
    pair.nobody_was_lost().await;
    pair.share(200).await;
}

#[tokio::test]
async fn nodes_share_over_tls_as_a_user_who_may_touch_only_their_cluster() {
    let home = Home::new();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    let port = free_port();
    let files = [
        ("ca.pem", authority.pem()),
        ("server.pem", server.pem()),
        ("server.key", key.serialize_pem()),
    ];
    let [ca, certificate, key] = files.map(|(name, text)| home.write(name, &text));
    let lines = format!(
        "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
         tls-auth-clients no\nuser node on >sesame ~flexkv:{{it:* +@all\n",
        certificate.display(),
        key.display(),
        ca.display(),
    );
    let redis = LocalRedis::start_configured(None, &lines).await.unwrap();
    let store = format!(
        "redis.url = 'rediss://node:sesame@127.0.0.1:{port}'\nredis.ca_file = '{}'",
        ca.display()
    );
    let pair = Pair::start(home, &store);
    pair.share(1).await;
    pair.nobody_was_lost().await;
    let clients = ask(redis.port(), "CLIENT LIST");
    let ours = clients.lines().filter(|line| line.contains(" user=node "));
    assert!(ours.count() >= 4, "{clients}");
}
