//! `flexkv serve`: starts serving instances that share a cache, watches over them, and ends them and
//! all that they started.
//!
//! Nodes are started by the connector in the instances, which alone knows what a block is; they
//! find each other in a folder of this run. Knows vLLM by its command line and health only.

mod check;
mod child;
mod console;
mod leftovers;
mod plan;

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use flexkv_redis::local::LocalRedis;
use futures_util::future::{join_all, select_all};
use hyper::StatusCode;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use self::child::Instance;
use self::console::{Console, Logs};
use self::leftovers::{Keeper, end_nodes};
use self::plan::{GPUS_VARIABLE, InstancePlan, RESERVED_VARIABLE, RedisAddress, Surroundings};
use crate::config::PASSWORD_VARIABLE;
use crate::http::Http;

/// How often an instance is asked whether it is healthy.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long it may take to say so.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);
/// How often the logs of nodes are looked at.
const LOGS_EVERY: Duration = Duration::from_millis(250);
/// How long killed processes may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// Who says what is neither an instance's nor a node's.
const US: &str = "flexkv";
/// Variables by which the user says where nodes are; their files are not ours then.
const PLACE_VARIABLES: [&str; 2] = ["FLEXKV_RUNTIME_DIR", "FLEXKV_NODE_SOCKET"];
/// Variable by which the user names Redis for the connector.
const REDIS_VARIABLE: &str = "FLEXKV_REDIS_HOST";

/// Which Redis nodes find each other in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisChoice {
    /// The one that the environment names, or none.
    AsIs,
    /// `redis://[:password@]host[:port]`.
    Url(String),
    /// One of this run alone.
    Start,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// How many instances.
    pub instances: usize,
    /// The first one's port.
    pub base_port: u16,
    /// Where they listen.
    pub host: String,
    /// The model: a folder, or a name that vLLM knows.
    pub model: String,
    /// vLLM's program.
    pub vllm: PathBuf,
    /// Further arguments of vLLM.
    pub arguments: Vec<String>,
    /// Let them use the connector.
    pub connector: bool,
    /// Every instance has a node of its own.
    pub node_per_instance: bool,
    /// Memory of a node in GiB.
    pub cpu_cache_gb: Option<f64>,
    /// GPUs of an instance.
    pub gpus_per_instance: Option<usize>,
    /// Where nodes find each other.
    pub redis: RedisChoice,
    /// How long instances may take to become healthy.
    pub start_within: Duration,
    /// How long instances may take to end before they are killed.
    pub stop_within: Duration,
}

/// A signal has asked us to end before all instances were healthy.
#[derive(Debug, thiserror::Error)]
#[error("asked to end before all instances were healthy")]
pub struct EndedEarly;

/// Starts what `spec` says and serves until a signal comes or an instance ends. Whatever happens,
/// everything that was started has ended when this returns.
pub async fn launch(spec: &LaunchSpec, out: &mut dyn Write) -> Result<()> {
    let mut asked = Asked::new()?;
    check::arguments(spec)?;
    let program = check::program(&spec.vllm, std::env::var_os("PATH").as_deref())?;
    check::model(&spec.model)?;
    let console = Console::default();
    let folder = folder()?;
    let mut keeper = Keeper::start(folder.path())?;
    let redis = Redis::prepare(spec, &console).await?;
    keeper.keep_process(redis.own.as_ref().and_then(LocalRedis::pid));
    let plans = plans(spec, folder.path(), redis.address.clone())?;
    check::ports(&plans, &spec.host)?;
    let mut instances = Vec::new();
    for plan in &plans {
        let instance = Instance::spawn(&program, plan, &console)?;
        keeper.keep_group(instance.group());
        instances.push(instance);
    }
    let mut run = Run {
        spec,
        plans: &plans,
        console,
        logs: Logs::new(folder.path()),
    };
    let ended = run.until_ended(&mut instances, &mut asked, out).await;
    run.stop(&mut instances, &mut asked, folder.path()).await;
    drop(redis);
    drop(keeper);
    ended?;
    tell(out, "stopped")
}

/// A folder for the nodes' sockets, settings and logs, which only this user can enter.
fn folder() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("flexkv-serve-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot make a temporary folder")
}

fn plans(
    spec: &LaunchSpec,
    folder: &Path,
    redis: Option<RedisAddress>,
) -> Result<Vec<InstancePlan>> {
    let placed = PLACE_VARIABLES.iter().any(|name| is_set(name));
    let gpus = std::env::var(GPUS_VARIABLE).ok();
    let gpus: Option<Vec<String>> =
        gpus.map(|gpus| gpus.split(',').map(|gpu| gpu.trim().to_owned()).collect());
    if let (Some(each), Some(gpus)) = (spec.gpus_per_instance, &gpus)
        && each * spec.instances > gpus.len()
    {
        let (instances, all) = (spec.instances, gpus.len());
        bail!(
            "{instances} instances of {each} GPUs each need more than the {all} of {GPUS_VARIABLE}"
        );
    }
    let around = Surroundings {
        host_name: std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|_| "host".to_owned(), |name| name.trim().to_owned()),
        folder: (!placed).then_some(folder),
        gpus,
        redis,
        reserved: std::env::var_os(RESERVED_VARIABLE).is_some(),
    };
    let plan = |number| {
        plan::instance(spec, &around, number)
            .with_context(|| format!("no port is left for instance {number}"))
    };
    (0..spec.instances).map(plan).collect()
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Prints `line`. A reader that has gone away does not end a service.
fn tell(out: &mut dyn Write, line: &str) -> Result<()> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        told => told.context("cannot tell what happens"),
    }
}

/// The Redis of a run.
struct Redis {
    own: Option<LocalRedis>,
    /// What instances are told; nothing if the environment says it, or there is none.
    address: Option<RedisAddress>,
}

impl Redis {
    async fn prepare(spec: &LaunchSpec, console: &Console) -> Result<Self> {
        if !spec.connector {
            return Ok(Self {
                own: None,
                address: None,
            });
        }
        let named = is_set(REDIS_VARIABLE);
        match &spec.redis {
            RedisChoice::Url(url) => {
                let mut address = RedisAddress::parse(url).map_err(|why| anyhow!(why))?;
                let password = || std::env::var(PASSWORD_VARIABLE).ok();
                address.password = address.password.or_else(password);
                if let Some(warning) = check::redis(&address).await {
                    console.say(US, &warning);
                }
                Ok(Self {
                    own: None,
                    address: Some(address),
                })
            }
            RedisChoice::AsIs if named || !spec.node_per_instance => Ok(Self {
                own: None,
                address: None,
            }),
            RedisChoice::AsIs | RedisChoice::Start => Self::start(console).await,
        }
    }

    /// A server that nobody without its password can use.
    async fn start(console: &Console) -> Result<Self> {
        let password = format!("{:032x}", fastrand::Rng::new().u128(..));
        let own = LocalRedis::start_with_password(&password).await?;
        console.say(US, &format!("Redis of this run: 127.0.0.1:{}", own.port()));
        let address = RedisAddress {
            host: "127.0.0.1".to_owned(),
            port: own.port(),
            password: Some(password),
        };
        Ok(Self {
            own: Some(own),
            address: Some(address),
        })
    }
}

/// Signals that ask this process to end.
struct Asked {
    interrupt: SignalStream,
    terminate: SignalStream,
}

impl Asked {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A run under way.
struct Run<'a> {
    spec: &'a LaunchSpec,
    plans: &'a [InstancePlan],
    console: Console,
    logs: Logs,
}

impl Run<'_> {
    /// Tells when all instances are healthy, and returns when the run is to end: well if a signal
    /// asked for it.
    async fn until_ended(
        &mut self,
        instances: &mut [Instance],
        asked: &mut Asked,
        out: &mut dyn Write,
    ) -> Result<()> {
        let died = select_all(
            instances
                .iter_mut()
                .map(|instance| Box::pin(instance.ended())),
        );
        let healthy = healthy(self.spec, self.plans, self.console.clone());
        tokio::pin!(died, healthy);
        let mut serving = false;
        loop {
            tokio::select! {
                (how, _, _) = &mut died => bail!("{how}; the others are stopped"),
                () = asked.recv() => {
                    self.console.say(US, "stopping");
                    return if serving { Ok(()) } else { Err(EndedEarly.into()) };
                }
                done = &mut healthy, if !serving => {
                    done?;
                    serving = true;
                    let urls: Vec<_> = self.plans.iter().map(|plan| plan.url.to_string()).collect();
                    tell(out, &format!("ready: {}", urls.join(" ")))?;
                }
                () = sleep(LOGS_EVERY) => self.show_logs(),
            }
        }
    }

    fn show_logs(&mut self) {
        let plans = self.plans;
        self.logs
            .show(&self.console, |stem| plan::node_label(stem, plans));
    }

    /// Ends the instances, then the nodes. A second signal makes it short.
    async fn stop(&mut self, instances: &mut [Instance], asked: &mut Asked, folder: &Path) {
        for instance in instances.iter() {
            instance.signal(Signal::TERM);
        }
        let ended = async {
            join_all(instances.iter_mut().map(Instance::wait)).await;
        };
        let in_time = tokio::select! {
            ended = timeout(self.spec.stop_within, ended) => ended.is_ok(),
            () = asked.recv() => false,
        };
        if !in_time {
            self.console
                .say(US, "killing the instances that do not end");
            for instance in instances.iter() {
                instance.signal(Signal::KILL);
            }
            let ended = join_all(instances.iter_mut().map(Instance::wait));
            if timeout(KILLED_WITHIN, ended).await.is_err() {
                self.console.say(US, "some processes cannot be killed");
            }
        }
        end_nodes(folder).await;
        self.show_logs();
    }
}

/// Waits until all instances are healthy.
async fn healthy(spec: &LaunchSpec, plans: &[InstancePlan], console: Console) -> Result<()> {
    let http = Http::default();
    let deadline = Instant::now() + spec.start_within;
    let all = plans
        .iter()
        .map(|plan| one_healthy(&http, plan, &console, deadline));
    let late: Vec<String> = join_all(all).await.into_iter().flatten().collect();
    if late.is_empty() {
        return Ok(());
    }
    bail!(
        "not healthy within {:?}: {}",
        spec.start_within,
        late.join(", ")
    )
}

/// Waits until an instance is healthy; tells what it said last if it is not in time.
async fn one_healthy(
    http: &Http,
    plan: &InstancePlan,
    console: &Console,
    deadline: Instant,
) -> Option<String> {
    let live = console.live(&plan.name);
    let began = Instant::now();
    loop {
        let said = match http
            .get(&format!("{}/health", plan.url), HEALTH_WITHIN)
            .await
        {
            Ok((StatusCode::OK, _)) => {
                live.finish_and_clear();
                let line = format!(
                    "healthy at {} after {:.1} s",
                    plan.url,
                    began.elapsed().as_secs_f64()
                );
                console.say(&plan.name, &line);
                return None;
            }
            Ok((status, _)) => format!("answers {status}"),
            Err(error) => error.to_string(),
        };
        live.set_message(format!("starting at {}: {said}", plan.url));
        if Instant::now() >= deadline {
            return Some(format!("{} ({said})", plan.name));
        }
        sleep(ASK_EVERY).await;
    }
}
