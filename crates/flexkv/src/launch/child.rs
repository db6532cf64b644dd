//! One instance as a process: in a group of its own, with all it starts. Knows nothing of HTTP.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::console::Console;
use super::plan::InstancePlan;

/// How long the rest of a group may take to end once its first process has.
const REST_WITHIN: Duration = Duration::from_secs(3);
/// How often to look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long log lines may take to come after the end.
const LOG_WITHIN: Duration = Duration::from_secs(1);

/// A running instance. Its group is killed when dropped.
#[derive(Debug)]
pub(super) struct Instance {
    name: String,
    child: Child,
    group: Option<Pid>,
    logs: JoinSet<()>,
}

impl Instance {
    /// Starts `program` as `plan` says.
    pub(super) fn spawn(program: &Path, plan: &InstancePlan, console: &Console) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(&plan.arguments)
            .envs(plan.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut logs = JoinSet::new();
        if let Some(out) = child.stdout.take() {
            logs.spawn(console.clone().relay(plan.name.clone(), out));
        }
        if let Some(err) = child.stderr.take() {
            logs.spawn(console.clone().relay(plan.name.clone(), err));
        }
        Ok(Self {
            name: plan.name.clone(),
            group: pid(&child),
            child,
            logs,
        })
    }

    /// Its process group.
    pub(super) fn group(&self) -> Option<Pid> {
        self.group
    }

    /// Waits until it ends; tells how it did.
    pub(super) async fn ended(&mut self) -> String {
        let name = &self.name;
        match self.child.wait().await {
            Ok(status) => format!("{name} ended: {}", describe(status)),
            Err(error) => format!("{name} is lost: {error}"),
        }
    }

    /// Sends `signal` to all of its processes.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails only if none is left.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits until all of its processes have ended, which were asked to.
    pub(super) async fn wait(&mut self) {
        // Fails only for a process that is not ours.
        let _ = self.child.wait().await;
        let deadline = Instant::now() + REST_WITHIN;
        while let Some(group) = self.group
            && test_kill_process_group(group).is_ok()
            && Instant::now() < deadline
        {
            sleep(LOOK_EVERY).await;
        }
        self.signal(Signal::KILL);
        self.group = None;
        let last_lines = async { while self.logs.join_next().await.is_some() {} };
        // Somebody else may have inherited the log.
        let _ = timeout(LOG_WITHIN, last_lines).await;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}
