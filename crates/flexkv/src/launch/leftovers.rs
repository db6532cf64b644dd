//! Sees to it that nothing is left: the nodes that the instances started in the run's folder, and
//! everything if this process itself is killed. Knows nodes by their configuration's path, which is
//! on their command line.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// How long nodes may take to leave the cluster.
const LEFT_WITHIN: Duration = Duration::from_secs(15);
/// How often to look whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits for its standard input to close, which happens however this process ends, and then ends
/// what is named there (process ids, groups with a minus) and all nodes of the folder.
const KEEPER: &str = r#"
ids=; while read -r id; do ids="$ids $id"; done
to_all() { for id in $ids; do kill -s "$1" -- "$id" 2>/dev/null && echo "$id"; done; }
nodes() { for p in /proc/[0-9]*; do
  tr '\0' '\n' 2>/dev/null <"$p/cmdline" | grep -F "$1/" | grep -q '\.toml$' && echo "${p#/proc/}"
done; }
to_all TERM
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -n "$(to_all 0)" ] || break; sleep 1; done
to_all KILL
for signal in TERM KILL; do
  for n in $(nodes "$1"); do kill -s "$signal" "$n" 2>/dev/null; done
  for _ in 1 2 3 4 5; do [ -n "$(nodes "$1")" ] || break; sleep 1; done
done
rm -rf -- "$1"
"#;

/// A process that ends all others should this one be killed. Does nothing once dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts one for the folder `folder`.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", KEEPER, "flexkv-keeper"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start /bin/sh")?;
        Ok(Self { child })
    }

    /// Has the process group `group` ended, too.
    pub(super) fn keep_group(&mut self, group: Option<Pid>) {
        self.keep(group, "-");
    }

    /// Has the process `pid` ended, too.
    pub(super) fn keep_process(&mut self, pid: Option<u32>) {
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        self.keep(pid, "");
    }

    fn keep(&mut self, pid: Option<Pid>, sign: &str) {
        if let (Some(pid), Some(stdin)) = (pid, &mut self.child.stdin) {
            // Without a keeper things are as they would be otherwise.
            let _ = writeln!(stdin, "{sign}{}", pid.as_raw_nonzero());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Before its standard input closes. Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the nodes whose files are in `folder`; kills those that do not end.
pub(super) async fn end_nodes(folder: &Path) {
    let deadline = Instant::now() + LEFT_WITHIN;
    let mut asked = Vec::new();
    loop {
        let nodes = nodes(folder);
        if nodes.is_empty() {
            return;
        }
        let late = Instant::now() >= deadline;
        for node in nodes {
            let again = asked.contains(&node);
            if late || !again {
                let signal = if late { Signal::KILL } else { Signal::TERM };
                // Fails only if it has ended.
                let _ = kill_process(node, signal);
                asked.push(node);
            }
        }
        if Instant::now() >= deadline + LEFT_WITHIN {
            tracing::warn!("nodes of {} do not end", folder.display());
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The processes that have a configuration in `folder` on their command line.
fn nodes(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut prefix = folder.as_os_str().as_bytes().to_vec();
    prefix.push(b'/');
    let node = |path: PathBuf| {
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let command = std::fs::read(path.join("cmdline")).ok()?;
        let mut words = command.split(|&byte| byte == 0);
        let names_node = |word: &[u8]| word.starts_with(&prefix) && word.ends_with(b".toml");
        words.any(names_node).then_some(())?;
        Pid::from_raw(pid)
    };
    let paths = processes.flatten().map(|entry| entry.path());
    paths.filter_map(node).collect()
}
