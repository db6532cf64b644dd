//! What can be found wrong before anything is started. Starts nothing.

use std::ffi::OsStr;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::LaunchSpec;
use super::plan::{InstancePlan, RedisAddress, gives};

/// vLLM's options that are given in another way here, and how.
const OWN_OPTIONS: [(&str, &str); 3] = [
    ("--port", "the second argument, BASE_PORT"),
    ("--host", "--host before the --"),
    ("--model", "--model before the --"),
];
/// How long Redis may take to accept a connection.
const REDIS_WITHIN: Duration = Duration::from_secs(5);

/// Refuses further arguments that contradict ours.
pub(super) fn arguments(spec: &LaunchSpec) -> Result<()> {
    for (option, instead) in OWN_OPTIONS {
        if gives(&spec.arguments, option) {
            bail!("{option} cannot stand after the --: use {instead}");
        }
    }
    Ok(())
}

/// Where the program `vllm` is.
pub(super) fn program(vllm: &Path, path: Option<&OsStr>) -> Result<PathBuf> {
    if vllm.components().count() > 1 {
        if !is_program(vllm) {
            bail!("{} is no program that can be started", vllm.display());
        }
        // Instances start in the same folder, so a relative path stays right.
        return Ok(vllm.to_owned());
    }
    let folders = path.map(std::env::split_paths).into_iter().flatten();
    let found = folders
        .map(|folder| folder.join(vllm))
        .find(|file| is_program(file));
    found.with_context(|| {
        format!(
            "`{}` is not found in the folders of PATH: activate the environment that vLLM is \
             installed in, or name the program with --vllm",
            vllm.display()
        )
    })
}

fn is_program(file: &Path) -> bool {
    let found = std::fs::metadata(file);
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Refuses a model that is a path to nothing. Any other name may be one that vLLM downloads.
pub(super) fn model(model: &str) -> Result<()> {
    let is_path = ["/", "./", "../"]
        .iter()
        .any(|start| model.starts_with(start));
    if is_path && !Path::new(model).exists() {
        bail!("the model folder {model} does not exist");
    }
    Ok(())
}

/// Refuses ports that somebody else listens at.
pub(super) fn ports(plans: &[InstancePlan], host: &str) -> Result<()> {
    for plan in plans {
        let (name, port) = (&plan.name, plan.url.port());
        let mut addresses = (host, port)
            .to_socket_addrs()
            .with_context(|| format!("--host {host} is no address of this host"))?;
        let cannot = || format!("port {port} of {host}, where {name} is to answer, cannot be used");
        let free = addresses.try_for_each(|address| TcpListener::bind(address).map(drop));
        free.with_context(cannot)?;
    }
    Ok(())
}

/// What is wrong with Redis now, if anything: nodes wait for it, so it may still come.
pub(super) async fn redis(redis: &RedisAddress) -> Option<String> {
    let connected = TcpStream::connect((redis.host.as_str(), redis.port));
    let why = match timeout(REDIS_WITHIN, connected).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {REDIS_WITHIN:?}"),
    };
    Some(format!(
        "nobody answers at Redis {}:{} ({why}); until it does, nodes share nothing",
        redis.host, redis.port
    ))
}

#[cfg(test)]
mod tests;
