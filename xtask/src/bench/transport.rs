//! `cargo xtask bench transport`: our transports, and with --with-peers those of others beside them.
//!
//! All take turns, round by round, so that a busy machine is busy for all. Knows nothing of how a
//! transport works, and of the libraries only what to install.

mod table;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::table::{Cell, Sample, Table};
use crate::python::Venv;
use crate::shell::{Run, root, say, target};
use crate::tools;

/// Measures TCP and shared memory between two processes of this host.
///
/// Without --with-peers that is `flexkv bench transport`. With it, Mooncake (its transfer engine, and the
/// store on top of that) and NIXL are installed in virtual environments of the cache directory
/// ($XDG_CACHE_HOME/flexkv or ~/.cache/flexkv), iperf3 by apt-get if it is missing, and all take turns; one
/// table says what each did. What cannot be installed or run has a row that says why.
///
///   cargo xtask bench transport
///
///   cargo xtask bench transport --with-peers --rounds 5
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Measure iperf3, Mooncake and NIXL, too
    #[arg(long)]
    with_peers: bool,
    /// Rounds, in each of which all have their turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Seconds for each size and batch in one turn
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    time: f64,
    /// Arguments for `flexkv bench transport`, without --with-peers
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Sizes of blocks, in bytes.
const SIZES: &[u64] = &[64 << 10, 256 << 10, 1 << 20];
/// Blocks read at once.
const BATCHES: &[u64] = &[1, 32];
/// The script that measures other libraries.
const SCRIPT: &str = "xtask/src/bench/peer.py";

/// A library to compare with.
struct Peer {
    /// What the script calls it, and the table.
    name: &'static str,
    environment: &'static str,
    /// What pip is told.
    packages: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

const PEERS: &[Peer] = &[
    Peer {
        name: "mooncake",
        environment: "bench-mooncake",
        packages: MOONCAKE,
        variables: &[("GLOG_minloglevel", "2")],
    },
    Peer {
        name: "mooncake-store",
        environment: "bench-mooncake",
        packages: MOONCAKE,
        variables: &[("GLOG_minloglevel", "2"), ("MC_RPC_PROTOCOL", "tcp")],
    },
    Peer {
        name: "nixl-tcp",
        environment: "bench-nixl",
        packages: NIXL,
        variables: &[
            ("UCX_TLS", "tcp"),
            ("UCX_NET_DEVICES", "lo"),
            ("NIXL_LOG_LEVEL", "ERROR"),
        ],
    },
    Peer {
        name: "nixl-shm",
        environment: "bench-nixl",
        packages: NIXL,
        variables: &[("UCX_TLS", "shm"), ("NIXL_LOG_LEVEL", "ERROR")],
    },
];

/// The transfer engine, and the store on top of it.
const MOONCAKE: &[&str] = &["mooncake-transfer-engine-non-cuda==0.3.13.post1"];

/// Without its dependencies, which are CUDA's libraries and torch; numpy is all that it needs here.
const NIXL: &[&str] = &["--no-deps", "nixl-cu12==1.5.1", "numpy"];

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.with_peers {
        return super::flexkv(&["bench".to_owned(), "transport".to_owned()])
            .args(&args.rest)
            .run();
    }
    tools::IPERF3.ensure()?;
    Run::cargo("build --release --package flexkv --bin flexkv").run()?;
    let mut table = Table::default();
    let peers: Vec<_> = PEERS.iter().map(|peer| (peer, install(peer))).collect();
    for (peer, installed) in &peers {
        if let Err(error) = installed {
            table.fail(peer.name, &format!("{error:#}"));
        }
    }
    for round in 1..=args.rounds {
        say(&format!("round {round} of {}", args.rounds));
        for sample in iperf(args.time * 2.0)? {
            table.add("iperf3", sample);
        }
        for (name, sample) in ours(args.time)? {
            table.add(&name, sample);
        }
        for (peer, installed) in &peers {
            let Ok(venv) = installed else {
                continue;
            };
            match theirs(peer, venv, args.time) {
                Ok(samples) => samples
                    .into_iter()
                    .for_each(|sample| table.add(peer.name, sample)),
                Err(error) => table.fail(peer.name, &format!("{error:#}")),
            }
        }
    }
    let cells = SIZES
        .iter()
        .flat_map(|size| BATCHES.iter().map(|batch| Cell::new(*size, *batch)));
    say(&table.show(cells));
    Ok(())
}

fn install(peer: &Peer) -> Result<Venv> {
    let venv = Venv::new(peer.environment)?;
    venv.ensure(&peer.packages.join("\n"), || {
        venv.create()?;
        venv.pip(peer.packages).run()
    })?;
    Ok(venv)
}

/// What `flexkv bench transport` says of memcpy, TCP and shared memory.
fn ours(seconds: f64) -> Result<Vec<(String, Sample)>> {
    let program = target()?.join("release").join("flexkv");
    let micros = format!("{} us", (seconds * 1e6) as u64);
    let sizes = list(SIZES, " B");
    let words = ["bench", "transport", "--json", "--rounds", "1", "--time"];
    let text = Run::new(&program.to_string_lossy())
        .args(words)
        .args([&micros, "--sizes", &sizes, "--batch", &list(BATCHES, "")])
        .read()?;
    let rows: Vec<Value> = serde_json::from_str(&text).context("flexkv bench transport")?;
    table::of_rows(&rows)
}

fn theirs(peer: &Peer, venv: &Venv, seconds: f64) -> Result<Vec<Sample>> {
    let script = root().join(SCRIPT);
    let mut run = venv
        .program("python")
        .args([&*script.to_string_lossy(), peer.name])
        .args([list(SIZES, ""), list(BATCHES, ""), seconds.to_string()]);
    for (name, value) in peer.variables {
        run = run.env(name, value);
    }
    let text = run.read()?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| Sample::of_line(&serde_json::from_str(line)?))
        .collect()
}

/// One stream of iperf3, which knows no blocks: the same for every size and batch.
fn iperf(seconds: f64) -> Result<Vec<Sample>> {
    let port = free_port()?.to_string();
    let iperf = |words: &[&str]| {
        let mut command = Command::new("iperf3");
        command.args(["-p", &port]).args(words).stdin(Stdio::null());
        command
    };
    let server = iperf(&["-s", "-1", "-B", "127.0.0.1", "--forceflush"])
        .stdout(Stdio::piped())
        .spawn();
    let mut server = Ended(server.context("cannot start iperf3")?);
    let output = server.0.stdout.take().context("iperf3 has no output")?;
    // It is read no further, but stays open: what is written is less than a pipe holds.
    let mut lines = BufReader::new(output).lines();
    if !lines.any(|line| line.is_ok_and(|line| line.contains("listening"))) {
        bail!("iperf3 does not listen");
    }
    let time = format!("{}", seconds.ceil() as u64);
    let output = iperf(&["-c", "127.0.0.1", "-t", &time, "-J"]).output()?;
    let said: Value = serde_json::from_slice(&output.stdout).context("iperf3 wrote no JSON")?;
    let end = &said["end"];
    let received = &end["sum_received"];
    let (bytes, took) = (received["bytes"].as_f64(), received["seconds"].as_f64());
    let (Some(bytes), Some(took)) = (bytes, took) else {
        bail!("iperf3 says: {}", said["error"]);
    };
    let percent = |whose: &str| {
        end["cpu_utilization_percent"][whose]
            .as_f64()
            .unwrap_or(f64::NAN)
    };
    let used = (percent("host_total") + percent("remote_total")) / 100.0 * took;
    let all = SIZES
        .iter()
        .flat_map(|size| BATCHES.iter().map(|batch| Cell::new(*size, *batch)));
    let sample = |cell| Sample {
        cell,
        gb_per_second: bytes / 1e9 / took,
        p50_us: None,
        p99_us: None,
        cpu_per_gb: used / (bytes / 1e9),
    };
    Ok(all.map(sample).collect())
}

/// A process that is over when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

fn list(numbers: &[u64], unit: &str) -> String {
    let words: Vec<_> = numbers.iter().map(|n| format!("{n}{unit}")).collect();
    words.join(",")
}
