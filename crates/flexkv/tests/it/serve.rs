//! `flexkv serve` with a stand-in for vLLM's program: start, health, logs, and above all that nothing
//! is left running, however it ends.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Done, Home, Running, runs, signal, until};

const STAND_IN: &str = include_str!("vllm_stand_in.py");

/// A folder with a model and the stand-in, and two consecutive free ports.
struct Host {
    home: Home,
    port: u16,
}

impl Host {
    fn new() -> Self {
        let home = Home::new();
        let program = home.write("vllm", &format!("#!/usr/bin/env python3\n{STAND_IN}"));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(home.path("model")).unwrap();
        let port = loop {
            let first = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = first.local_addr().unwrap().port();
            if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
                break port;
            }
        };
        Self { home, port }
    }

    /// `flexkv serve` of two instances; `more` are arguments of ours, `vllm` of the stand-in.
    fn serve(&self, more: &str, vllm: &str) -> Command {
        let port = self.port;
        let command = format!(
            "serve 2 {port} --model ./model --vllm ./vllm {more} -- --first-port {port} {vllm}"
        );
        let mut command = self.home.command(&command);
        command.env_remove("FLEXKV_RUNTIME_DIR");
        command
    }

    fn start(&self, more: &str, vllm: &str) -> Running {
        Running::start(&mut self.serve(more, vllm))
    }

    fn ready(&self) -> String {
        let (first, second) = (self.port, self.port + 1);
        format!("ready: http://127.0.0.1:{first} http://127.0.0.1:{second}")
    }
}

/// The processes that the stand-ins have told of.
fn pids(log: &str) -> Vec<u32> {
    let pid = |line: &str| line.split_once("] pid ")?.1.parse().ok();
    log.lines().filter_map(pid).collect()
}

/// The ids of the next `count` processes that stand-ins tell of.
fn next_pids(running: &Running, count: usize) -> Vec<u32> {
    let lines: Vec<String> = (0..count).map(|_| running.error_line("] pid ")).collect();
    pids(&lines.join("\n"))
}

async fn assert_nothing_left(host: &Host, pids: &[u32]) {
    for pid in pids {
        until(&format!("process {pid} ends"), async || !runs(*pid)).await;
    }
    until("the folder is removed", async || {
        std::fs::read_dir(host.home.path("tmp"))
            .unwrap()
            .next()
            .is_none()
    })
    .await;
}

async fn ended_cleanly(host: &Host, running: Running, code: i32, processes: usize) -> Done {
    let done = running.done().await;
    assert_eq!(done.code, Some(code), "{}", done.err);
    let pids = pids(&done.err);
    assert_eq!(pids.len(), processes, "{}", done.err);
    // Not even for a moment after the command has ended.
    for pid in &pids {
        assert!(!runs(*pid), "process {pid} is left:\n{}", done.err);
    }
    host.home.assert_clean();
    done
}

#[tokio::test]
async fn instances_become_healthy_and_end_with_a_signal() {
    let host = Host::new();
    for how in [Signal::INT, Signal::TERM] {
        let running = host.start("", "--healthy-after 0.3 --some-option x");
        assert_eq!(running.line(), host.ready());
        signal(running.pid(), how);
        assert_eq!(running.line(), "stopped");
        // Two instances, each with a worker, share a node.
        let done = ended_cleanly(&host, running, 0, 5).await;
        for part in [
            "[i0] arguments serve ./model --host 127.0.0.1 --port",
            r#"--kv-transfer-config {"kv_connector":"FlexKVConnectorV1","kv_role":"kv_both"}"#,
            "--some-option x",
            "[i1] variable FLEXKV_RUNTIME_DIR",
            "[i1] healthy at http://127.0.0.1:",
            "[i0] ending",
            "[node] node log of",
        ] {
            assert!(done.err.contains(part), "{part:?} is not in:\n{}", done.err);
        }
        assert!(!done.err.contains("FLEXKV_REDIS"), "{}", done.err);
    }
}

#[tokio::test]
async fn every_instance_can_have_a_node_and_then_gets_a_redis() {
    let host = Host::new();
    let running = host.start("--node-per-instance --cpu-cache-gb 0.25", "");
    assert_eq!(running.line(), host.ready());
    signal(running.pid(), Signal::INT);
    let done = ended_cleanly(&host, running, 0, 6).await;
    for part in [
        "[flexkv] Redis of this run: 127.0.0.1:",
        "[i0] variable FLEXKV_NODE_NAME",
        "[i0] variable FLEXKV_CPU_CACHE_GB",
        "[i1] variable FLEXKV_REDIS_PASSWORD",
        "[n0] node log of",
        "[n1] node log of",
    ] {
        assert!(done.err.contains(part), "{part:?} is not in:\n{}", done.err);
    }
}

#[tokio::test]
async fn without_the_connector_nothing_of_ours_is_there() {
    let host = Host::new();
    let running = host.start("--no-connector", "");
    assert_eq!(running.line(), host.ready());
    signal(running.pid(), Signal::INT);
    let done = ended_cleanly(&host, running, 0, 4).await;
    assert!(!done.err.contains("kv_connector"), "{}", done.err);
    assert!(!done.err.contains("variable FLEXKV_"), "{}", done.err);
}

#[tokio::test]
async fn one_that_dies_takes_the_others_with_it_and_is_named() {
    let host = Host::new();
    let running = host.start("", "");
    let first = next_pids(&running, 1)[0];
    let name = running.line();
    assert_eq!(name, host.ready());
    signal(first, Signal::KILL);
    let done = running.done().await;
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(
        done.err
            .contains("ended: killed by signal 9; the others are stopped"),
        "{}",
        done.err
    );
    let left = pids(&done.err);
    assert_eq!(left.len(), 4);
    for pid in left {
        assert!(!runs(pid), "process {pid} is left");
    }
    host.home.assert_clean();
}

#[tokio::test]
async fn one_that_cannot_start_is_named_with_its_log() {
    let host = Host::new();
    let running = host.start("", "--healthy-after 60 --fail 1");
    let done = running.done().await;
    done.assert_failed(1, &["[i1] no such model", "error: i1 ended: exit status 3"]);
    assert_eq!(done.out, "");
    for pid in pids(&done.err) {
        assert!(!runs(pid), "process {pid} is left");
    }
    host.home.assert_clean();
}

#[tokio::test]
async fn one_that_does_not_become_healthy_is_named() {
    let host = Host::new();
    let running = host.start("--start-deadline 500ms", "--healthy-after 60");
    let done = ended_cleanly(&host, running, 1, 5).await;
    done.assert_failed(
        1,
        &[
            "not healthy within 500ms: i0 (cannot connect",
            "i1 (cannot connect",
        ],
    );
}

#[tokio::test]
async fn a_signal_ends_a_start_and_stubborn_instances_are_killed() {
    let host = Host::new();
    let running = host.start("--stop-deadline 500ms", "--healthy-after 60 --stubborn");
    let told = next_pids(&running, 5);
    signal(running.pid(), Signal::INT);
    let done = running.done().await;
    done.assert_failed(130, &["asked to end before all instances were healthy"]);
    assert!(
        done.err.contains("killing the instances that do not end"),
        "{}",
        done.err
    );
    assert_nothing_left(&host, &told).await;
}

#[tokio::test]
async fn a_second_signal_makes_it_short() {
    let host = Host::new();
    let running = host.start("--stop-deadline 1h", "--stubborn");
    let told = next_pids(&running, 5);
    assert_eq!(running.line(), host.ready());
    signal(running.pid(), Signal::INT);
    running.error_line("stopping");
    signal(running.pid(), Signal::INT);
    assert_eq!(running.line(), "stopped");
    assert_eq!(running.done().await.code, Some(0));
    assert_nothing_left(&host, &told).await;
}

#[tokio::test]
async fn nothing_is_left_even_if_we_are_killed() {
    let host = Host::new();
    let running = host.start("--start-redis", "");
    let redis = running.error_line("Redis of this run: 127.0.0.1:");
    let redis: u16 = redis.rsplit(':').next().unwrap().parse().unwrap();
    let told = next_pids(&running, 5);
    assert_eq!(running.line(), host.ready());
    signal(running.pid(), Signal::KILL);
    for pid in &told {
        until(&format!("process {pid} ends"), async || !runs(*pid)).await;
    }
    until("Redis ends", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", redis))
            .await
            .is_err()
    })
    .await;
    let serve_folders = || {
        let entries = std::fs::read_dir(host.home.path("tmp")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with("flexkv-serve-"))
            .count()
    };
    until("the folder is removed", async || serve_folders() == 0).await;
}

#[test]
fn the_commands_explain_themselves() {
    let home = Home::new();
    for (command, parts) in [
        (
            "serve",
            &[
                "flexkv serve 2 30001",
                "--node-per-instance",
                "Exit codes",
                "default: vllm",
            ][..],
        ),
        (
            "bench serve",
            &["--workload trace", "default: round-robin", "first token"],
        ),
    ] {
        let done = home.run(&format!("{command} --help"));
        assert_eq!(done.code, Some(0), "{}", done.err);
        for part in parts {
            assert!(done.out.contains(part), "{part:?} is not in:\n{}", done.out);
        }
    }
}

#[tokio::test]
async fn mistakes_are_explained() {
    let host = Host::new();
    let home = &host.home;
    let taken = TcpListener::bind(("127.0.0.1", host.port + 1)).unwrap();
    let port = format!("port {} of 127.0.0.1, where i1 is to answer", host.port + 1);
    let done = host.start("", "").done().await;
    done.assert_failed(1, &[&port, "in use"]);
    assert_eq!(pids(&done.err), Vec::<u32>::new());
    drop(taken);
    let vllm = PathBuf::from("./vllm");
    let vllm = vllm.display();
    for (args, code, parts) in [
        (
            "serve 2 30001 --model ./model --vllm no-such-vllm".to_owned(),
            1,
            &["`no-such-vllm` is not found", "--vllm"][..],
        ),
        (
            "serve 2 30001 --model ./model --vllm ./model".to_owned(),
            1,
            &["./model is no program"],
        ),
        (
            format!("serve 2 30001 --model ./none --vllm {vllm}"),
            1,
            &["the model folder ./none does not exist"],
        ),
        (
            format!("serve 2 65535 --model ./model --vllm {vllm}"),
            1,
            &["no port is left for instance 1"],
        ),
        (
            format!("serve 1 30001 --model ./model --vllm {vllm} -- --port=3"),
            1,
            &["--port cannot stand after the --", "BASE_PORT"],
        ),
        (
            format!("serve 1 30001 --model ./model --vllm {vllm} --redis r:1"),
            1,
            &["--redis", "redis://[:password@]host[:port]"],
        ),
        (
            "serve 1 30001 --model ./model --redis redis://r --start-redis".to_owned(),
            2,
            &["--start-redis", "--redis"],
        ),
        (
            "serve 1 30001 --model ./model --cpu-cache-gb 0".to_owned(),
            2,
            &["`0` is not a size in GiB"],
        ),
        ("serve 0 30001 --model m".to_owned(), 2, &["1..=64"]),
        ("serve 1 30001".to_owned(), 2, &["--model"]),
    ] {
        home.run(&args).assert_failed(code, parts);
    }
    home.assert_clean();
}
