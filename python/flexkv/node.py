"""Finds the cache node of this host, or starts it.

Engines of a host that share a namespace share a node: its socket lies at a path derived from the
namespace. The first engine that finds nobody there starts the node under a lock, detached, so that
it outlives the engine. Knows nothing of engines, nor of what the node does.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexkv.config import GIB, Config, ConfigError

_DEFAULT_SHARE = 4
_DEFAULT_MOST = 16 * GIB
_DEFAULT_LEAST = GIB // 4

_DETACHED = '"$@" --json </dev/null >>"$0" 2>&1 & echo $!'
"""A shell that ends at once, so that the node is nobody's child: engines kill their children."""


class NodeStartError(RuntimeError):
    """The node could not be started; the text says why and where its log is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """What a node must know to serve a namespace."""

    namespace: str
    block_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    """The files of one node, beside each other."""

    socket: Path

    @property
    def lock(self) -> Path:
        """Held while the node is looked for and started."""
        return self.socket.with_suffix(".lock")

    @property
    def config(self) -> Path:
        """The configuration it was started with."""
        return self.socket.with_suffix(".toml")

    @property
    def log(self) -> Path:
        """What it told."""
        return self.socket.with_suffix(".log")

    @property
    def pid(self) -> Path:
        """Its process."""
        return self.socket.with_suffix(".pid")


def runtime_dir(config: Config) -> Path:
    """The directory of sockets and logs, which only this user can enter."""
    if config.runtime_dir:
        path = Path(config.runtime_dir)
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(base) / "flexkv"
    else:
        path = Path(f"/tmp/flexkv-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not path.is_dir():
        raise ConfigError(f"{path} must be a directory of mode 0700 that belongs to this user")
    return path


def files(config: Config, namespace: str) -> Files:
    """Where the node of `namespace` is, or is to be."""
    if config.node_socket:
        return Files(Path(config.node_socket))
    name = namespace if not config.node_name else f"{namespace}-{_plain(config.node_name)}"
    return Files(runtime_dir(config) / f"{name}.sock")


def cluster_secret(config: Config) -> bytes:
    """The secret of the cluster. A host alone draws its own; with Redis its password serves."""
    if config.secret and config.secret_file:
        raise ConfigError("secret cannot stand beside secret_file: give one of them")
    if config.secret:
        return config.secret.encode()
    if config.secret_file:
        try:
            line = Path(config.secret_file).read_bytes().split(b"\n", 1)[0]
        except OSError as error:
            raise ConfigError(f"secret_file cannot be read: {error}") from error
        if not line:
            raise ConfigError(f"{config.secret_file} begins with an empty line")
        return line
    if redis_url(config):
        return (config.redis_password or config.cluster).encode()
    return _own_secret(runtime_dir(config) / "secret")


def redis_url(config: Config) -> str | None:
    """Redis without its password, if nodes are to find each other."""
    if config.redis_host is None or not config.enable_p2p_cpu:
        return None
    host = f"[{config.redis_host}]" if ":" in config.redis_host else config.redis_host
    return f"redis://{host}:{config.redis_port}"


def ensure(config: Config, deployment: Deployment) -> Path:
    """The socket of a node that serves `deployment`, started if nobody listens there.

    It may take the node a moment until it listens.
    """
    at = files(config, deployment.namespace)
    if config.node_socket or _listens(at.socket):
        return at.socket
    with _locked(at.lock):
        if not _listens(at.socket) and not _runs(at.pid):
            _start(config, deployment, at)
    return at.socket


def toml(config: Config, deployment: Deployment, at: Files) -> str:
    """The node's configuration file."""
    if config.secret_file:
        secret = f"secret_file = {_quoted(str(Path(config.secret_file).resolve()))}"
    else:
        secret = f"secret = {_quoted(cluster_secret(config).decode())}"
    url = redis_url(config)
    address = config.local_ip or ("127.0.0.1" if url is None else _own_address(config))
    name = config.node_name or f"{socket.gethostname()}-{deployment.namespace[:8]}"
    lines = [
        f"name = {_quoted(_plain(name))}",
        f"cluster = {_quoted(config.cluster)}",
        f"locality = {_quoted(config.locality)}",
        secret,
        "[namespace]",
        f"id = {_quoted(deployment.namespace)}",
        f"block_bytes = {deployment.block_bytes}",
        "[memory]",
        f'size = "{max(memory_bytes(config), deployment.block_bytes)} B"',
        "populate = false",
        f"policy = {_quoted(config.eviction_policy)}",
        *_ssd(config),
        "[network]",
        f"listen = {_quoted(_with_port(address, config.node_port))}",
        *(() if config.shared_memory else ("shared_memory = false",)),
        *_tls(config),
        "[engine]",
        f"socket = {_quoted(str(at.socket))}",
    ]
    if url is not None:
        lines += ["[redis]", f"url = {_quoted(url)}"]
    if config.metrics_listen:
        lines += ["[metrics]", f"listen = {_quoted(config.metrics_listen)}"]
    return "\n".join(lines) + "\n"


def _ssd(config: Config) -> list[str]:
    """The section of the SSD; none without one."""
    directories = config.ssd_cache_dir
    if config.ssd_cache_gb is None and not directories:
        return []
    if config.ssd_cache_gb is None or not directories:
        raise ConfigError("ssd_cache_gb and ssd_cache_dir are needed together")
    size = int(config.ssd_cache_gb * GIB) // len(directories)
    paths = ", ".join(_quoted(str(Path(path).resolve())) for path in directories)
    return [
        "[ssd]",
        f"directories = [{paths}]",
        f'sizes = "{size} B"',
        f"policy = {_quoted(config.eviction_policy)}",
    ]


def _tls(config: Config) -> list[str]:
    """The settings of TLS that are there; the node says which are missing."""
    files = {
        "tls_certificate_file": config.tls_certificate_file,
        "tls_key_file": config.tls_key_file,
        "tls_ca_file": config.tls_ca_file,
    }
    lines = [f"{key} = {_quoted(str(Path(path).resolve()))}" for key, path in files.items() if path]
    if config.tls_name:
        lines.append(f"tls_name = {_quoted(config.tls_name)}")
    return lines


def memory_bytes(config: Config) -> int:
    """How much memory the node is to take."""
    if config.cpu_cache_gb is not None:
        return int(config.cpu_cache_gb * GIB)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(_DEFAULT_LEAST, min(available // _DEFAULT_SHARE, _DEFAULT_MOST))


def _start(config: Config, deployment: Deployment, at: Files) -> None:
    """Starts the node, and returns when it runs; it need not listen yet."""
    text = toml(config, deployment, at)
    _write_private(at.config, text)
    command = shlex.split(config.node_command or shlex.join([sys.executable, "-m", "flexkv"]))
    environ = {name: value for name, value in os.environ.items() if name != "FLEXKV_REDIS_PASSWORD"}
    if redis_url(config) and config.redis_password:
        environ["FLEXKV_REDIS_PASSWORD"] = config.redis_password
    started = subprocess.run(
        ["/bin/sh", "-c", _DETACHED, str(at.log), *command, "node", "--config", str(at.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environ,
        cwd="/",
        start_new_session=True,
        check=True,
    )
    _write_private(at.pid, started.stdout.decode())
    _await_listening(config, at)


def _await_listening(config: Config, at: Files) -> None:
    """Waits until the node listens, for as long as an engine's start may."""
    deadline = time.monotonic() + config.attach_timeout_s
    while time.monotonic() < deadline and not _listens(at.socket):
        if not _runs(at.pid):
            last = at.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise NodeStartError(f"the node ended at once: {last}; see {at.log}")
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _runs(path: Path) -> bool:
    """Whether the process whose id is in the file at `path` runs and is a node."""
    try:
        pid = int(path.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return str(path.with_suffix(".toml")).encode() in command.split(b"\0")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file at `path`, which the kernel gives back if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own_secret(path: Path) -> bytes:
    """The secret of a host alone, drawn by whoever needs it first."""
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            _write_private(path, secrets.token_hex(16))
        return path.read_bytes()


def _write_private(path: Path, text: str) -> None:
    """Writes the file at once, readable by this user only."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _own_address(config: Config) -> str:
    """The address of this host that leads to Redis."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((config.redis_host, config.redis_port))
        except OSError as error:
            raise ConfigError(
                f"local_ip is needed: {config.redis_host} is not known: {error}"
            ) from error
        return str(probe.getsockname()[0])


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _plain(name: str) -> str:
    """`name` with nothing in it that a file name or a label could not have."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]


def _quoted(text: str) -> str:
    return json.dumps(text)
