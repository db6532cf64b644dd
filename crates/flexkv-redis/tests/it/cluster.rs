//! A cluster of three masters and a replica, which the store uses as one.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flexkv_ports::{MetadataStore, StoreError};
use flexkv_redis::RedisStore;
use flexkv_redis::local::LocalRedis;

use crate::server::{
    LONG, config, conforms, cursor, entries, names, sequences, server, tell, until, until_ok,
};

/// Slots of every cluster.
const SLOTS: usize = 16_384;
/// How many servers have slots.
pub(crate) const MASTERS: usize = 3;

/// Masters and replicas.
pub(crate) struct Cluster {
    /// The masters first.
    pub(crate) nodes: Arc<Vec<LocalRedis>>,
}

impl Cluster {
    /// Starts three masters and as many `replicas` of the first.
    pub(crate) async fn start(replicas: usize) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..MASTERS + replicas {
            let lines = "cluster-enabled yes\ncluster-node-timeout 1000\n\
                         cluster-replica-validity-factor 0\n";
            let node = LocalRedis::start_configured(Some(port()), lines).await;
            nodes.push(node.unwrap_or_else(|e| panic!("{e}")));
        }
        for (i, node) in nodes.iter().enumerate() {
            let epoch = format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1);
            assert_eq!(tell(node, &epoch).await, "+OK");
            if i < MASTERS {
                let slots = (i * SLOTS / MASTERS)..((i + 1) * SLOTS / MASTERS);
                let slots: Vec<_> = slots.map(|slot| slot.to_string()).collect();
                let added = tell(node, &format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
                assert_eq!(added, "+OK");
            }
            let meet = format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port());
            assert_eq!(tell(node, &meet).await, "+OK");
        }
        let first = tell(&nodes[0], "CLUSTER MYID").await;
        let first = first.lines().last().expect("an id").to_owned();
        for replica in &nodes[MASTERS..] {
            until("the replica knows its master", async || {
                tell(replica, &format!("CLUSTER REPLICATE {first}")).await == "+OK"
            })
            .await;
        }
        for node in &nodes {
            let knows = format!("cluster_known_nodes:{}", nodes.len());
            until("the cluster is formed", async || {
                let info = tell(node, "CLUSTER INFO").await;
                info.contains("cluster_state:ok") && info.contains(&knows)
            })
            .await;
        }
        let nodes = Arc::new(nodes);
        Self { nodes }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[1].port())
    }

    pub(crate) async fn store(&self) -> RedisStore {
        let store = RedisStore::connect(config(&self.url())).await;
        store.expect("connect")
    }
}

/// A port that is free together with the one 10,000 above, over which servers of a cluster talk.
fn port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = std::iter::repeat_with(|| fastrand::u16(10_000..22_000));
    ports
        .find(|port| free(*port) && free(port + 10_000))
        .expect("endless")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_promises_of_the_port() {
    let cluster = Cluster::start(0).await;
    let url = cluster.url();
    conforms(&cluster.nodes, || config(&url)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_spread_over_the_masters_and_read_by_one_call() {
    let cluster = Cluster::start(0).await;
    let (writer, reader) = (cluster.store().await, cluster.store().await);
    let logs: Vec<_> = (0..48).map(|n| format!("node-{n}.1")).collect();
    for log in &logs {
        let made = writer.append(log, &entries(1..2, 0), true, LONG).await;
        made.expect("append");
    }
    for node in &*cluster.nodes {
        let here = tell(node, "KEYS *:log:*").await;
        let here = here.lines().filter(|l| l.contains(":log:")).count();
        assert!(here >= 4, "{here} of {} logs", logs.len());
    }
    let mut cursors: Vec<_> = logs.iter().map(|log| cursor(log, 0)).collect();
    let mut seen = 0;
    while seen < logs.len() {
        for read in reader.read(&cursors, 10, LONG).await.expect("read") {
            let at = cursors.iter_mut().find(|c| c.log == read.log);
            at.expect("a log that was asked for").after = 1;
            assert_eq!(read.entries, entries(1..2, 0), "{}", read.log);
            seen += 1;
        }
    }
    for log in logs.iter().rev() {
        let reading = reader.read(&cursors, 10, LONG);
        let appending = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            writer.append(log, &entries(2..3, 0), false, LONG).await
        };
        let (read, appended) = tokio::join!(reading, appending);
        appended.expect("append");
        let read = read.expect("read");
        assert_eq!((read.len(), &read[0].log), (1, log));
        let at = cursors.iter_mut().find(|c| c.log == *log);
        at.expect("asked for").after = 2;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_replaced_is_left_and_one_that_dies_is_too() {
    let cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    let logs: Vec<_> = (0..24).map(|n| format!("node-{n}.1")).collect();
    for log in &logs {
        let made = store.append(log, &entries(1..2, 0), true, LONG).await;
        made.expect("append");
    }
    store
        .renew("n", Bytes::new(), &logs[0], LONG)
        .await
        .expect("renew");
    let replica = &cluster.nodes[MASTERS];
    let master = async |node: &LocalRedis| {
        let info = tell(node, "INFO replication").await;
        info.contains("role:master")
    };
    until("the replica takes over as told", async || {
        tell(replica, "CLUSTER FAILOVER").await;
        master(replica).await
    })
    .await;
    goes_on(&store, &logs, 2).await;
    until("the replica has followed", async || {
        let info = tell(replica, "INFO replication").await;
        info.contains("connected_slaves:1") && info.contains("state=online")
    })
    .await;
    let pid = replica.pid().expect("it runs") as i32;
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    until("the first master takes over again", async || {
        master(&cluster.nodes[0]).await
    })
    .await;
    goes_on(&store, &logs, 3).await;
}

/// Asserts that everything can be appended, read and renewed.
async fn goes_on(store: &RedisStore, logs: &[String], sequence: u64) {
    let news = entries(sequence..sequence + 1, 0);
    for log in logs {
        until_ok("appends", async || {
            store.append(log, &news, false, LONG).await
        })
        .await;
        let cursors = [cursor(log, sequence - 1)];
        let read = until_ok("reads", async || store.read(&cursors, 10, LONG).await).await;
        assert_eq!(read[0].entries, news, "{log}");
    }
    let renewed = until_ok("renews", async || {
        store.renew("n", Bytes::new(), &logs[0], LONG).await
    })
    .await;
    assert!(renewed.lease_kept && renewed.log_kept, "{renewed:?}");
    assert_eq!(names(store).await, ["n"]);
    assert_eq!(sequences(store, &logs[1], sequence - 1).await, [sequence]);
}

#[tokio::test]
async fn says_what_kind_of_server_it_found() {
    let alone = server().await;
    let url = format!("redis-cluster://127.0.0.1:{}", alone.port());
    let error = RedisStore::connect(config(&url)).await.expect_err("alone");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(
        error.to_string().contains("cluster support disabled"),
        "{error}"
    );

    let cluster = Cluster::start(0).await;
    let url = format!("redis://127.0.0.1:{}", cluster.nodes[0].port());
    let store = RedisStore::connect(config(&url)).await.expect("connect");
    let mut said = Vec::new();
    for log in 0..16 {
        let made = store
            .append(&format!("{log}"), &entries(1..2, 0), true, LONG)
            .await;
        said.extend(made.err().map(|error| error.to_string()));
    }
    assert!(!said.is_empty(), "two thirds of the slots are elsewhere");
    let hint = "begin the url with redis-cluster://";
    assert!(said.iter().all(|error| error.contains(hint)), "{said:?}");
}
