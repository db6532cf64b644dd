//! Networks made of namespaces: places of their own for processes, joined by cables that can be
//! pulled and made narrow.
//!
//! A test with a network runs in a process of its own, in a namespace that nothing leaves: when the
//! process ends, however it does, all is gone. Knows no nodes.

use std::net::Ipv4Addr;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::harness::PATIENCE;

/// Tells the program that it has a network of its own.
const OWN: &str = "FLEXKV_TEST_HAS_ITS_NETWORK";
/// Where each place finds what all can reach even with its cable pulled, and its tests.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);

/// The ways into a network of one's own: as any user, as root, and as one who may become root.
const WAYS: [&[&str]; 3] = [
    &["unshare", "--user", "--map-root-user", "--net"],
    &["unshare", "--net"],
    &["sudo", "-n", "-E", "unshare", "--net"],
];

/// Whether this process has a network of its own. If not, the test named so is run again in a process
/// that has, and this was all there is to do. Fails where no network can be had.
pub(crate) fn has_own_network(test: &str) -> bool {
    if std::env::var_os(OWN).is_some() {
        return true;
    }
    // Where not all have administrators' programs in their path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let way = way(&path);
    let status = Command::new(way[0])
        .args(&way[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OWN, "1")
        .env("PATH", path)
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{test} failed, see above");
    false
}

/// The first way that works here.
fn way(path: &str) -> &'static [&'static str] {
    let mut told = String::new();
    for way in WAYS {
        let tried = Command::new(way[0])
            .args(&way[1..])
            .args(["ip", "link", "add", "test0", "type", "bridge"])
            .env("PATH", path)
            .stdin(Stdio::null())
            .output();
        match tried {
            Ok(output) if output.status.success() => return way,
            Ok(output) => {
                told += &format!("\n{way:?}: {}", String::from_utf8_lossy(&output.stderr))
            }
            Err(error) => told += &format!("\n{way:?}: {error}"),
        }
    }
    panic!(
        "partitions cannot be tested here: the test needs network namespaces (as root, or \
         unprivileged user namespaces) and `ip` and `tc` of the package iproute2:{told}"
    );
}

/// Two switches: one for what nodes send each other, one for the store and the tests.
pub(crate) struct Hub;

impl Hub {
    /// Makes them in the network of this process.
    pub(crate) fn new() -> Self {
        run("ip link set lo up");
        for switch in ["data", "store"] {
            run(&format!("ip link add {switch} type bridge"));
            run(&format!("ip link set {switch} up"));
        }
        run(&format!("ip addr add {HUB}/24 dev store"));
        Self
    }

    /// A place with a cable to each switch.
    pub(crate) fn place(&self, number: u8) -> Place {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let place = Place { number, holder };
        place.wait_for_namespace();
        for (switch, ip) in [("data", place.data()), ("store", place.store())] {
            let (pid, port) = (place.holder.id(), place.port(switch));
            run(&format!(
                "ip link add {port} type veth peer name {switch} netns {pid}"
            ));
            run(&format!("ip link set {port} master {switch} up"));
            place.run(&format!("ip addr add {ip}/24 dev {switch}"));
            place.run(&format!("ip link set {switch} up"));
        }
        place.run("ip link set lo up");
        place
    }
}

/// A network namespace for processes.
pub(crate) struct Place {
    number: u8,
    /// Waits in it, so that it stays, until this process ends.
    holder: Child,
}

impl Place {
    /// Its address for other places.
    pub(crate) fn data(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its address for the store and the tests.
    pub(crate) fn store(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.number)
    }

    /// `command`, to be run in this place.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }

    /// Pulls the cable to a switch: what is sent gets lost, and nobody is told.
    pub(crate) fn pull(&self, switch: &str) {
        run(&format!("ip link set {} nomaster", self.port(switch)));
    }

    /// Plugs it in again.
    pub(crate) fn plug(&self, switch: &str) {
        run(&format!(
            "ip link set {} master {switch}",
            self.port(switch)
        ));
    }

    /// From now on it sends other places no more than so many megabits a second.
    pub(crate) fn narrow(&self, megabits: u32) {
        self.run(&format!(
            "tc qdisc replace dev data root tbf rate {megabits}mbit burst 64kb latency 100ms"
        ));
    }

    /// The switch's end of a cable.
    fn port(&self, switch: &str) -> String {
        format!("{switch}{}", self.number)
    }

    fn run(&self, line: &str) {
        check(line, self.command(&words(line)).status());
    }

    fn wait_for_namespace(&self) {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let (own, holder) = (namespace("self"), self.holder.id().to_string());
        let mut tries = PATIENCE.as_millis();
        while namespace(&holder) == own {
            assert!(tries > 0, "no namespace is made");
            std::thread::park_timeout(std::time::Duration::from_millis(1));
            tries -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may have been killed from outside.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn words(line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

fn run(line: &str) {
    check(line, words(line).status());
}

fn check(line: &str, status: std::io::Result<ExitStatus>) {
    assert!(status.is_ok_and(|status| status.success()), "{line} failed");
}
