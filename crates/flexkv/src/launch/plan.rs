//! What each instance is started with: its port, arguments and environment. Pure: starts nothing.

use std::path::Path;

use super::LaunchSpec;
use crate::http::BaseUrl;

/// What makes vLLM use its own connector of this name, which runs on ours.
const CONNECTOR: &str = r#"{"kv_connector":"FlexKVConnectorV1","kv_role":"kv_both"}"#;
/// vLLM's option for connectors.
const CONNECTOR_OPTION: &str = "--kv-transfer-config";
/// vLLM's option for several GPUs.
const TENSOR_OPTION: &str = "--tensor-parallel-size";
/// vLLM's options whose product is the number of an instance's workers.
const WORKER_OPTIONS: [[&str; 2]; 2] =
    [[TENSOR_OPTION, "-tp"], ["--pipeline-parallel-size", "-pp"]];
/// How many cores vLLM leaves to others than its compute threads, where it runs on CPUs.
pub(super) const RESERVED_VARIABLE: &str = "VLLM_CPU_NUM_OF_RESERVED_CPU";
/// Which GPUs a process sees.
pub(super) const GPUS_VARIABLE: &str = "CUDA_VISIBLE_DEVICES";
/// Longest name of a host in a node's name.
const MAX_HOST_CHARS: usize = 40;

/// How the nodes of a run find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedisAddress {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) password: Option<String>,
}

/// One instance to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InstancePlan {
    /// What it is called in logs.
    pub(super) name: String,
    /// Where it answers.
    pub(super) url: BaseUrl,
    /// vLLM's arguments.
    pub(super) arguments: Vec<String>,
    /// Variables to set.
    pub(super) environment: Vec<(&'static str, String)>,
}

/// What plans depend on besides the user's wishes.
#[derive(Clone, Debug)]
pub(super) struct Surroundings<'a> {
    /// This host's name.
    pub(super) host_name: String,
    /// A folder for nodes that end with this run; none if the user has said where they are.
    pub(super) folder: Option<&'a Path>,
    /// The GPUs that may be used, if the user has said which.
    pub(super) gpus: Option<Vec<String>>,
    /// Redis, if this run names one.
    pub(super) redis: Option<RedisAddress>,
    /// The user has said how many cores are reserved.
    pub(super) reserved: bool,
}

/// The instance `number` of `spec`.
pub(super) fn instance(
    spec: &LaunchSpec,
    around: &Surroundings<'_>,
    number: usize,
) -> Option<InstancePlan> {
    // Those who listen at all addresses listen at this one, too.
    let host = match spec.host.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let url = BaseUrl::new(host, spec.base_port).next(number)?;
    Some(InstancePlan {
        name: format!("i{number}"),
        arguments: arguments(spec, &url),
        environment: environment(spec, around, number, &url),
        url,
    })
}

fn arguments(spec: &LaunchSpec, url: &BaseUrl) -> Vec<String> {
    let own = ["serve", &spec.model, "--host", &spec.host, "--port"];
    let mut arguments: Vec<String> = own.map(str::to_owned).into();
    arguments.push(url.port().to_string());
    if spec.connector && !gives(&spec.arguments, CONNECTOR_OPTION) {
        arguments.extend([CONNECTOR_OPTION, CONNECTOR].map(str::to_owned));
    }
    if let Some(gpus) = spec.gpus_per_instance
        && gpus > 1
        && !gives(&spec.arguments, TENSOR_OPTION)
    {
        arguments.extend([TENSOR_OPTION.to_owned(), gpus.to_string()]);
    }
    arguments.extend(spec.arguments.iter().cloned());
    arguments
}

fn environment(
    spec: &LaunchSpec,
    around: &Surroundings<'_>,
    number: usize,
    url: &BaseUrl,
) -> Vec<(&'static str, String)> {
    let mut variables = Vec::new();
    if let Some(gpus) = spec.gpus_per_instance {
        variables.push((GPUS_VARIABLE, gpus_of(number, gpus, around.gpus.as_deref())));
    }
    if !spec.connector {
        return variables;
    }
    if spec.gpus_per_instance.is_none()
        && !around.reserved
        && !gives(&spec.arguments, CONNECTOR_OPTION)
    {
        variables.push((RESERVED_VARIABLE, workers(&spec.arguments).to_string()));
    }
    if let Some(folder) = around.folder {
        variables.push(("FLEXKV_RUNTIME_DIR", folder.display().to_string()));
    }
    if spec.node_per_instance {
        variables.push(("FLEXKV_NODE_NAME", node_name(&around.host_name, url.port())));
    }
    if let Some(size) = spec.cpu_cache_gb {
        variables.push(("FLEXKV_CPU_CACHE_GB", size.to_string()));
    }
    if let Some(redis) = &around.redis {
        variables.push(("FLEXKV_REDIS_HOST", redis.host.clone()));
        variables.push(("FLEXKV_REDIS_PORT", redis.port.to_string()));
        if let Some(password) = &redis.password {
            variables.push(("FLEXKV_REDIS_PASSWORD", password.clone()));
        }
    }
    variables
}

/// Whether `arguments` have `option`, as `--option value` or `--option=value`.
pub(super) fn gives(arguments: &[String], option: &str) -> bool {
    place(arguments, option).is_some()
}

/// The workers of an instance. For each of them vLLM reserves a core, and another one if there is any
/// connector; where no core is left then, it reserves none at all. Ours needs none of its own.
fn workers(arguments: &[String]) -> usize {
    let sizes = WORKER_OPTIONS.map(|names| {
        let given = names.iter().find_map(|name| value(arguments, name));
        given.and_then(|size| size.parse().ok()).unwrap_or(1)
    });
    sizes.into_iter().fold(1, usize::saturating_mul)
}

/// What `arguments` say after `option`, or after it and `=`.
fn value<'a>(arguments: &'a [String], option: &str) -> Option<&'a str> {
    let (at, rest) = place(arguments, option)?;
    rest.strip_prefix('=')
        .or_else(|| arguments.get(at + 1).map(String::as_str))
}

/// Where `arguments` have `option`, and what follows it there.
fn place<'a>(arguments: &'a [String], option: &str) -> Option<(usize, &'a str)> {
    arguments.iter().enumerate().find_map(|(at, argument)| {
        let rest = argument.strip_prefix(option)?;
        (rest.is_empty() || rest.starts_with('=')).then_some((at, rest))
    })
}

/// The GPUs of instance `number`: the next `count` of `all`, or of all that there are.
fn gpus_of(number: usize, count: usize, all: Option<&[String]>) -> String {
    let mine = number * count..(number + 1) * count;
    let names: Vec<String> = match all {
        Some(all) => all.get(mine).unwrap_or_default().to_vec(),
        None => mine.map(|gpu| gpu.to_string()).collect(),
    };
    names.join(",")
}

/// The name of an instance's own node, of characters that files and labels can have.
fn node_name(host: &str, port: u16) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    let host: String = host.chars().take(MAX_HOST_CHARS).map(plain).collect();
    format!("{host}-{port}")
}

/// What the lines of a node's log at `stem` begin with.
pub(super) fn node_label(stem: &str, plans: &[InstancePlan]) -> String {
    let own = plans.iter().position(|plan| {
        let mut names = plan.environment.iter();
        names.any(|(key, name)| *key == "FLEXKV_NODE_NAME" && stem.ends_with(name.as_str()))
    });
    own.map_or_else(|| "node".to_owned(), |number| format!("n{number}"))
}

impl RedisAddress {
    /// The server at `url`: `redis://[:password@]host[:port]`.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let no = |why: &str| format!("--redis: {why}; expected redis://[:password@]host[:port]");
        let rest = url
            .strip_prefix("redis://")
            .ok_or_else(|| no("it does not begin with redis://"))?;
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (place, database) = place.split_once('/').unwrap_or((place, ""));
        if !matches!(database, "" | "0") {
            return Err(no("only database 0 can be used"));
        }
        let password = match user.map(|user| user.split_once(':')) {
            None => None,
            Some(Some(("" | "default", password))) => Some(decode(password).ok_or_else(|| {
                no("the password has a % that two hexadecimal digits do not follow")
            })?),
            Some(_) => return Err(no("only the default user can be used")),
        };
        let uri: BaseUrl = format!("http://{place}")
            .parse()
            .map_err(|_| no(&format!("`{place}` is no host and port")))?;
        let named = place.ends_with(&format!(":{}", uri.port()));
        Ok(Self {
            port: if named { uri.port() } else { 6379 },
            host: uri.host().to_owned(),
            password,
        })
    }
}

/// `text` with every `%41` as the byte it stands for.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
