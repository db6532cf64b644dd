//! A master, a replica and three sentinels: the store goes on with whoever is master.

use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use flexkv_ports::MetadataStore;
use flexkv_redis::RedisStore;
use flexkv_redis::local::{LocalRedis, program};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::server::{
    LONG, config, cursor, entries, names, sequences, server, tell, until, until_ok,
};

/// A sentinel; killed when dropped.
struct Sentinel {
    port: u16,
    child: Child,
    _folder: TempDir,
}

impl Sentinel {
    fn start(port: u16, master: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sentinel.conf");
        let lines = format!(
            "bind 127.0.0.1\nport {port}\ndir \"{}\"\nlogfile \"\"\n\
             sentinel monitor main 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            folder.path().display()
        );
        std::fs::write(&file, lines).expect("written");
        let child = Command::new(program())
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self {
            port,
            child: child.expect("a sentinel"),
            _folder: folder,
        }
    }

    /// What it knows of the master. A sentinel does not know QUIT, so the answer's end is its last
    /// field.
    async fn told(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(b"SENTINEL MASTER main\r\n").await?;
        let mut told = String::new();
        let mut lines = BufReader::new(stream);
        while !told.contains("parallel-syncs") && lines.read_line(&mut told).await? > 0 {}
        Ok(told)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Watched {
    master: LocalRedis,
    replica: LocalRedis,
    sentinels: Vec<Sentinel>,
}

impl Watched {
    async fn start() -> Self {
        let master = server().await;
        let lines = format!("replicaof 127.0.0.1 {}\n", master.port());
        let replica = LocalRedis::start_configured(None, &lines).await;
        let replica = replica.unwrap_or_else(|e| panic!("{e}"));
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let sentinel = |port| Sentinel::start(port, master.port());
        let sentinels: Vec<_> = ports.into_iter().map(sentinel).collect();
        for sentinel in &sentinels {
            let knows = ["num-slaves\r\n$1\r\n1", "num-other-sentinels\r\n$1\r\n2"];
            until("sentinels know each other and the replica", async || {
                let told = sentinel.told().await.unwrap_or_default();
                knows.iter().all(|part| told.contains(part))
            })
            .await;
        }
        Self {
            master,
            replica,
            sentinels,
        }
    }

    fn url(&self) -> String {
        let [first, second, third] = [0, 1, 2].map(|i| self.sentinels[i].port);
        format!(
            "redis-sentinel://127.0.0.1:{first}?node=127.0.0.1:{second}&node=127.0.0.1:{third}\
             &sentinelServiceName=main"
        )
    }

    async fn replicated(&self) {
        until("the replica has everything", async || {
            let info = tell(&self.master, "INFO replication").await;
            let field = |name: &str| {
                let line = info.lines().find_map(|l| l.strip_prefix(name));
                line.map(str::to_owned)
            };
            let sent = field("master_repl_offset:");
            let got = field("slave0:").and_then(|line| {
                let offset = line.split(',').find_map(|f| f.strip_prefix("offset="));
                offset.map(str::to_owned)
            });
            sent.is_some() && sent == got
        })
        .await;
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_neither_leases_nor_logs() {
    let mut watched = Watched::start().await;
    let store = RedisStore::connect(config(&watched.url())).await;
    let store = store.expect("connect");
    let renew = async || store.renew("n", Bytes::new(), "l", LONG).await;
    renew().await.expect("renew");
    let made = store.append("l", &entries(1..3, 0), true, LONG).await;
    made.expect("append");
    assert_eq!(names(&store).await, ["n"]);
    watched.replicated().await;

    let cursors = [cursor("l", 2)];
    let reading = until_ok("reads again", async || {
        match store.read(&cursors, 10, LONG).await {
            Ok(read) if read.is_empty() => panic!("the wait ended without news"),
            read => read,
        }
    });
    let failing_over = async {
        watched.master.kill();
        let news = entries(3..4, 0);
        until_ok("appends to the new master", async || {
            store.append("l", &news, false, LONG).await
        })
        .await;
    };
    let (read, ()) = tokio::join!(reading, failing_over);
    assert_eq!(read[0].entries, entries(3..4, 0));
    let renewed = renew().await.expect("renew");
    assert!(renewed.lease_kept && renewed.log_kept, "{renewed:?}");
    assert_eq!(names(&store).await, ["n"]);
    assert_eq!(sequences(&store, "l", 0).await, [1, 2, 3]);
    let role = tell(&watched.replica, "INFO replication").await;
    assert!(role.contains("role:master"), "{role}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_replica_had_not_yet_is_noticed() {
    let mut watched = Watched::start().await;
    let store = RedisStore::connect(config(&watched.url())).await;
    let store = store.expect("connect");
    let renew = async || store.renew("n", Bytes::new(), "l", LONG).await;
    renew().await.expect("renew");
    let made = store.append("l", &entries(1..3, 0), true, LONG).await;
    made.expect("append");
    watched.replicated().await;
    tell(&watched.replica, "REPLICAOF NO ONE").await;
    let late = store.append("l", &entries(3..5, 0), false, LONG).await;
    late.expect("append that the replica does not get");
    // Sentinels make it a replica again, which would take all from its master.
    watched.master.kill();
    let renewed = until_ok("renews", renew).await;
    assert!(renewed.lease_kept && !renewed.log_kept, "{renewed:?}");
    assert_eq!(sequences(&store, "l", 0).await, [1, 2]);
}
