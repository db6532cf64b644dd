"""Settings of the engine side, from `FLEXKV_CONFIG_PATH` (YAML or JSON) or `FLEXKV_*` variables.

Names are those of the original FlexKV wherever the concept is the same. What the original has and
this one does not need is accepted and reported; any other name is refused, with the nearest known
one. As there, a file wins over variables. Knows nothing of engines, nor of how settings are used.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "FLEXKV_"
FILE_VARIABLE = "FLEXKV_CONFIG_PATH"
_OTHERS = {FILE_VARIABLE, "FLEXKV_LOG", "FLEXKV_REDIS_SERVER", "FLEXKV_FUZZ_TARGET"}
"""Variables that the command and its tools read; tests have `FLEXKV_TEST_...`."""
SWITCH_VARIABLE = "ENABLE_FLEXKV"

GIB = 1 << 30
POLICIES = ("lru", "half-age", "lfu", "slru", "fifo", "s3-fifo")


class ConfigError(ValueError):
    """A setting cannot be used; the text names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """Every setting. On one host none need be given."""

    cpu_cache_gb: float | None = None
    """Memory of the host's node in GiB; a quarter of what is available, at most 16, if none."""
    ssd_cache_gb: float | None = None
    """What the host's node may keep on SSD besides, in GiB, spread over `ssd_cache_dir`."""
    ssd_cache_dir: tuple[str, ...] = ()
    """Directories, in a list or with `;` between them."""
    eviction_policy: str = "lru"
    """What goes first from memory and SSD."""
    redis_host: str | None = None
    """Redis, through which nodes find each other; without it the host is alone."""
    redis_port: int = 6379
    redis_password: str | None = dataclasses.field(default=None, repr=False)
    local_ip: str | None = None
    """The address at which other nodes reach this host."""
    enable_p2p_cpu: bool = True
    """Share with other nodes. Without it Redis is not used."""
    cluster: str = "flexkv"
    """Nodes of one cluster find each other by it."""
    secret: str | None = dataclasses.field(default=None, repr=False)
    """What all nodes and engines of a cluster share; of no use to anybody else."""
    secret_file: str | None = None
    locality: str = ""
    model_id: str | None = None
    """Name of the model for sharing, where instances know it by different paths."""
    node_name: str | None = None
    """A node of its own for engines that give this name, instead of the host's common one."""
    node_socket: str | None = None
    """Socket of a node that somebody else runs; none is started."""
    node_command: str | None = None
    """The command that starts nodes; this Python's `-m flexkv` if none."""
    node_port: int = 0
    """Port for other nodes; 0 takes a free one."""
    shared_memory: bool = True
    """Nodes of one host read each other's memory in place. Without it they use the network, too."""
    tls_certificate_file: str | None = None
    """With the next two: blocks travel between hosts inside TLS."""
    tls_key_file: str | None = None
    tls_ca_file: str | None = None
    """Certificates of the authorities whose nodes are believed."""
    tls_name: str | None = None
    """The name that all nodes' certificates bear; each its node's address if none."""
    metrics_listen: str | None = None
    """Where the node serves its metrics, such as `127.0.0.1:9400`."""
    runtime_dir: str | None = None
    """Sockets and logs; `$XDG_RUNTIME_DIR/flexkv` or `/tmp/flexkv-UID` if none."""
    attach_timeout_s: float = 15.0
    """How long an engine's start waits for the node; it goes on trying afterwards."""
    fetch_deadline_s: float = 2.0
    """Longest wait for blocks of other nodes; what has arrived by then is used."""
    recompute_tokens_per_second: float | None = None
    """How fast the engine computes prompts; measured if none. What would take longer to fetch than to
    compute is not fetched."""
    copy_threads: int = 1
    """Threads of each worker that copy blocks."""
    enable: bool = True
    """False leaves the engine as it is without a connector."""
    notes: tuple[str, ...] = ()
    """What the reader of the settings should be told."""


# Settings of the original that have no counterpart, and why nothing is lost without them.
_NO_SSD = "is not needed: the SSD is read by its node, for peers too"
_NO_REMOTE = "has no effect: blocks are kept in memory and on SSD only"
_NO_GPU = "is not needed: blocks are copied by the worker that owns them"
_NO_SERVER = "is not needed: engines of a host attach to its node by themselves"
_NO_LAYOUT = "is not needed: a block is always contiguous"
_NO_LEASE = "is not needed: nodes publish changes as they happen and renew one lease each"
_NO_TRACE = "is not needed: see the metrics of the node and of the engine"
_NO_POLICY = "is not needed: the node evicts block by block, as `eviction_policy` says"
UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("enable_p2p_ssd", "enable_gds"), _NO_SSD),
    **dict.fromkeys(("max_file_size_gb", "iouring_entries", "iouring_flags"), _NO_SSD),
    **dict.fromkeys(("enable_remote", "enable_3rd_remote", "remote_cache_gb"), _NO_REMOTE),
    **dict.fromkeys(("use_ce_transfer_h2d", "use_ce_transfer_d2h"), _NO_GPU),
    **dict.fromkeys(("transfer_sms_h2d", "transfer_sms_d2h", "enable_mps"), _NO_GPU),
    **dict.fromkeys(("server_client_mode", "server_recv_port", "instance_num"), _NO_SERVER),
    **dict.fromkeys(("master_host", "master_ports", "instance_id"), _NO_SERVER),
    **dict.fromkeys(("cpu_layout", "ssd_layout", "remote_layout", "gds_layout"), _NO_LAYOUT),
    **dict.fromkeys(("enable_kv_sharing", "rebuild_interval_ms", "lease_ttl_ms"), _NO_LEASE),
    **dict.fromkeys(("renew_lease_ms", "safety_ttl_ms", "swap_block_threshold"), _NO_LEASE),
    **dict.fromkeys(("mooncake_config_path", "distributed_node_id"), _NO_LEASE),
    **dict.fromkeys(("logging_prefix", "log_level", "num_log_interval_requests"), _NO_TRACE),
    **dict.fromkeys(("enable_trace", "trace_file_path", "trace_max_file_size_mb"), _NO_TRACE),
    **dict.fromkeys(("trace_max_files", "trace_flush_interval_ms"), _NO_TRACE),
    **dict.fromkeys(("enable_metrics", "py_metrics_port", "cpp_metrics_port"), _NO_TRACE),
    **dict.fromkeys(("index_accel", "evict_ratio", "hit_reward_seconds"), _NO_POLICY),
    "evict_start_threshold": _NO_POLICY,
}

_FIELDS = {
    field.name: field
    for field in dataclasses.fields(Config)
    if field.name not in ("notes", "enable")
}


def load(environ: Mapping[str, str] | None = None) -> Config:
    """The settings that `environ` gives, or the file that it names."""
    environ = os.environ if environ is None else environ
    enabled = _boolean(SWITCH_VARIABLE, environ.get(SWITCH_VARIABLE, "1"))
    variables = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not (name in _OTHERS or name.startswith("FLEXKV_TEST_"))
    }
    config = read(variables, lambda key: PREFIX + key.upper())
    path = environ.get(FILE_VARIABLE)
    if path:
        given = _document(Path(path))
        config = _merged(config, read(given, lambda key: f"`{key}` in {path}"), given)
    return dataclasses.replace(config, enable=enabled)


def read(given: Mapping[str, Any], named: Any) -> Config:
    """The settings in `given`. `named` turns a key into the name its reader knows it by."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in given.items():
        if key in _FIELDS:
            values[key] = _value(named(key), str(_FIELDS[key].type), value)
        elif key in UNNEEDED:
            notes.append(f"{named(key)} {UNNEEDED[key]}")
        else:
            near = difflib.get_close_matches(key, [*_FIELDS, *UNNEEDED], n=1, cutoff=0.0)
            raise ConfigError(f"{named(key)} is no setting; did you mean {named(near[0])}?")
    config = Config(**values, notes=tuple(notes))
    _check(config, named)
    return config


def _merged(below: Config, above: Config, given: Mapping[str, Any]) -> Config:
    """`above`, with `below` for whatever is not in `given`."""
    chosen = {key: getattr(above, key) for key in given if key in _FIELDS}
    return dataclasses.replace(below, **chosen, notes=below.notes + above.notes)


def _check(config: Config, named: Any) -> None:
    """Refuses values that cannot be meant."""
    if config.cpu_cache_gb is not None and config.cpu_cache_gb <= 0:
        raise ConfigError(f"{named('cpu_cache_gb')} must be above 0, not {config.cpu_cache_gb}")
    if config.ssd_cache_gb is not None and config.ssd_cache_gb <= 0:
        raise ConfigError(f"{named('ssd_cache_gb')} must be above 0, not {config.ssd_cache_gb}")
    if config.eviction_policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise ConfigError(f"{named('eviction_policy')} must be one of {known}")
    for key in ("redis_port", "node_port"):
        if not 0 <= getattr(config, key) < 1 << 16:
            raise ConfigError(f"{named(key)} is no port: {getattr(config, key)}")
    for key in ("fetch_deadline_s", "attach_timeout_s"):
        if not 0 <= getattr(config, key) <= 3600:
            raise ConfigError(f"{named(key)} must be from 0 to 3600 seconds")
    rate = config.recompute_tokens_per_second
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"{named('recompute_tokens_per_second')} must be above 0, not {rate}")
    if not 1 <= config.copy_threads <= 64:
        raise ConfigError(f"{named('copy_threads')} must be from 1 to 64")


def _document(path: Path) -> Mapping[str, Any]:
    """The mapping in the file at `path`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{FILE_VARIABLE} names {path}, which cannot be read: {error}") from error
    try:
        given = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid: {error}") from error
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(f"{path} must hold settings, `name: value`")
    return {str(key): value for key, value in given.items()}


def _yaml(text: str) -> Any:
    import yaml  # needed for YAML files alone

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _value(name: str, kind: str, value: Any) -> Any:
    """`value` as the type that the field's annotation `kind` names."""
    wanted = kind.split(" | ")[0]
    if value is None:
        raise ConfigError(f"{name} has no value")
    if wanted == "bool":
        return _boolean(name, value)
    if wanted.startswith("tuple"):
        parts = value if isinstance(value, (list, tuple)) else str(value).split(";")
        return tuple(str(part).strip() for part in parts if str(part).strip())
    if wanted == "str":
        if isinstance(value, (list, tuple)):
            return shlex.join(str(part) for part in value)
        return str(value)
    try:
        if isinstance(value, bool):
            raise ValueError
        return int(value) if wanted == "int" else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a number, not {value!r}") from None


def _boolean(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{name} must be true or false, not {value!r}")
