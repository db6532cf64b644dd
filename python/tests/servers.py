"""Real vLLM instances for tests, started as a user starts them: by `flexkv serve`.

A `Serve` is one such command, and stands for one host; several find each other in a `Redis` of the
test. Everything is given back by `close`, also after a failure, and ends with the process that runs
the tests. Knows nothing of what is tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hosts import BLOCK as BLOCK

READY_WITHIN_S = 900
ANSWERED_WITHIN_S = 300
TRUE_WITHIN_S = 60

_ENVIRON = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # vLLM keeps a core more free for a connector, and then computes on other cores with it.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
    # For `/reset_prefix_cache`.
    "VLLM_SERVER_DEV_MODE": "1",
    "FLEXKV_METRICS_LISTEN": "127.0.0.1:0",
    # Nodes stand for hosts of their own, which share no memory.
    "FLEXKV_SHARED_MEMORY": "0",
    # On a busy machine a fetch may be slow; that is not what is tested.
    "FLEXKV_FETCH_DEADLINE_S": "30",
}
_VLLM = (
    "--enforce-eager",
    "--enable-prompt-tokens-details",
    "--max-model-len=4096",
    "--max-num-seqs=16",
    # 128 MiB of the small model's blocks, which are put into memory at once.
    "--num-gpu-blocks-override=512",
)
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def until(question: Callable[[], Any], what: str, within_s: float = TRUE_WITHIN_S) -> Any:
    """The first answer to `question` that is true; fails if there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}; last: {answer!r}"
        time.sleep(0.05)


class Metrics:
    """Samples of a `/metrics` page."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 if there is none."""
        return sum(
            value
            for found, has, value in self.samples
            if found == name and labels.items() <= has.items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of this name by a label's value, those of 0 left out."""
        sums: dict[str, float] = {}
        for found, has, value in self.samples:
            if found == name and value:
                sums[has.get(label, "")] = sums.get(has.get(label, ""), 0) + value
        return sums


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an instance answered."""

    tokens: list[int]
    prompt_tokens: int
    cached: int
    """Tokens of the prompt that were not computed."""
    told: dict[str, Any]
    """What the connector told of this request; empty without one."""
    logprobs: list[float]
    """Of the tokens, if asked for by `logprobs=0`."""

    @property
    def hits(self) -> int:
        """Tokens that the connector loaded."""
        return self.local + self.remote

    @property
    def local(self) -> int:
        """Of these, tokens that the instance's own node had."""
        return self.told.get("flexkv_hit_tokens_local", 0)

    @property
    def remote(self) -> int:
        """Of these, tokens that came from other nodes."""
        return self.told.get("flexkv_hit_tokens_remote", 0)

    @property
    def saved(self) -> int:
        """Tokens that the connector offered to the node."""
        return self.told.get("flexkv_saved_tokens", 0)


def fetch_text(url: str, body: Any = None, within_s: float = 30) -> str:
    """What is at `url`; `body` is posted as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=within_s) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.code} {error.read().decode()[:2000]}") from None


class Node:
    """The node that an instance uses, which may be another process after it was killed."""

    def __init__(self, files: Callable[[], Path]) -> None:
        """`files` tells where its socket lies; the other files are beside it."""
        self._files = files

    @property
    def socket(self) -> Path:
        """Where engines attach."""
        return self._files()

    @property
    def pid(self) -> int:
        """Its process, the last one if it has ended."""
        return int(self._files().with_suffix(".pid").read_text())

    @property
    def runs(self) -> bool:
        """Whether that process is there."""
        config = str(self._files().with_suffix(".toml")).encode()
        return _alive(self.pid) and config in _command(self.pid)

    @property
    def log(self) -> str:
        """All that it and its predecessors told."""
        return self._files().with_suffix(".log").read_text(errors="replace")

    @property
    def ready(self) -> dict[str, Any]:
        """What the one that runs told when it was ready: `name`, `pid`, `endpoint`, `metrics`."""
        lines = [line for line in self.log.splitlines() if '"event":"ready"' in line]
        return json.loads(lines[-1])

    def metrics(self) -> Metrics:
        """Its metrics now."""
        return Metrics(fetch_text(self.ready["metrics"]))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        assert self.runs, "no signal for a node that has ended"
        os.kill(self.pid, number)

    def blocks(self) -> dict[bytes, int]:
        """The keys of the blocks in its memory, with where each of them lies (see the arena in
        `docs/protocol.md`)."""
        with self._arena() as arena:
            slots, _, stride, payload = struct.unpack_from("<IIQQ", arena.read(4096), 40)
            descriptors = arena.read(64 * slots)
        found = {}
        for slot in range(slots):
            word, key = struct.unpack_from("=Q16s", descriptors, 64 * slot)
            if word:
                found[key] = payload + slot * stride
        return found

    def spoil(self, at: int) -> None:
        """Flips a bit in the first page of the block that lies at `at` in its memory."""
        with self._arena() as arena:
            (byte,) = os.pread(arena.fileno(), 1, at + 1000)
            os.pwrite(arena.fileno(), bytes([byte ^ 1]), at + 1000)

    def _arena(self) -> BinaryIO:
        entries = Path(f"/proc/{self.pid}/fd").iterdir()
        for entry in sorted(entries, key=lambda entry: int(entry.name)):
            if os.readlink(entry).startswith("/memfd:"):
                return entry.open("r+b", buffering=0)
        raise AssertionError("the node has no memory file")


class Instance:
    """One vLLM server."""

    def __init__(self, serve: Serve, number: int) -> None:
        self.serve = serve
        self.number = number
        self.port = serve.port + number
        self.url = f"http://127.0.0.1:{self.port}"
        self.node = Node(self._node_socket)

    def complete(self, tokens: list[int], max_tokens: int = 16, **more: Any) -> Answer:
        """The greedy completion of a prompt."""
        body = {
            "model": self.serve.model,
            "prompt": tokens,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }
        text = fetch_text(f"{self.url}/v1/completions", body, ANSWERED_WITHIN_S)
        answer = json.loads(text)
        usage = answer["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            tokens=answer["choices"][0]["token_ids"],
            prompt_tokens=usage["prompt_tokens"],
            cached=details.get("cached_tokens") or 0,
            told=answer.get("kv_transfer_params") or {},
            logprobs=(answer["choices"][0].get("logprobs") or {}).get("token_logprobs", []),
        )

    def metrics(self) -> Metrics:
        """Its metrics now."""
        return Metrics(fetch_text(f"{self.url}/metrics"))

    def forget(self) -> None:
        """Makes the engine forget what it has in its own memory."""
        fetch_text(f"{self.url}/reset_prefix_cache", {})

    def processes(self) -> dict[int, str]:
        """Its processes with their titles, such as `VLLM::EngineCore`."""
        group = self.group()
        found = {}
        for pid in _pids():
            with contextlib.suppress(OSError):
                if os.getpgid(pid) == group:
                    found[pid] = b" ".join(_command(pid)).decode(errors="replace").strip()
        return found

    def group(self) -> int:
        """Its process group."""
        port = ["--port", str(self.port)]
        for pid in _pids():
            words = [word.decode(errors="replace") for word in _command(pid)]
            here = words.index("--port") if "--port" in words else -1
            if here >= 0 and words[here : here + 2] == port and _parent(pid) == self.serve.pid:
                return pid
        raise AssertionError(f"no instance answers at port {self.port}")

    def kill(self) -> None:
        """Kills all of it with SIGKILL, upon which `flexkv serve` ends its other instances."""
        os.killpg(self.group(), signal.SIGKILL)

    def _node_socket(self) -> Path:
        own = "" if self.serve.shared_node else f"-{self.port}"
        found = [path for path in self.serve.folder().glob("*.pid") if path.stem.endswith(own)]
        assert found, f"there is no node of instance {self.number}"
        return max(found, key=lambda path: path.stat().st_mtime).with_suffix(".sock")


class Serve:
    """One `flexkv serve`, which is starting when this is made; `ready` waits for it."""

    def __init__(
        self,
        model: str,
        count: int = 1,
        *,
        redis: Redis | None = None,
        connector: bool = True,
        shared_node: bool = False,
        cache_gb: float = 0.25,
        vllm: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        """`vllm` are further arguments of vLLM, `environ` further variables."""
        self.model = model
        self.shared_node = shared_node
        # A path of its own that is short enough for sockets.
        self._place = tempfile.TemporaryDirectory(prefix="fks-", dir="/tmp")
        self._log = Path(self._place.name) / "serve.log"
        self.port = free_ports(count)
        self.instances = [Instance(self, number) for number in range(count)]
        options = ["--vllm", str(Path(sys.executable).parent / "vllm")]
        variables = {**os.environ, **_ENVIRON, "TMPDIR": self._place.name, **(environ or {})}
        if connector:
            options += ["--cpu-cache-gb", str(cache_gb)]
            options += [] if shared_node else ["--node-per-instance"]
            if redis is not None:
                options += ["--redis", f"redis://127.0.0.1:{redis.port}"]
                variables["FLEXKV_REDIS_PASSWORD"] = redis.password
        else:
            options.append("--no-connector")
        command = [sys.executable, "-m", "flexkv", "serve", str(count), str(self.port)]
        command += ["--model", model, *options, "--", *_VLLM, *vllm]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process of the command."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has printed, and with it all instances and nodes."""
        return self._log.read_text(errors="replace")

    def ready(self, within_s: float = READY_WITHIN_S) -> list[Instance]:
        """Its instances, once it says that they are healthy."""
        deadline = time.monotonic() + within_s
        while not re.search(r"^ready: http", self.log, re.MULTILINE):
            ended = self._process.poll()
            assert ended is None, f"flexkv serve ended with {ended}:\n{self.log[-8000:]}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log[-8000:]}"
            time.sleep(0.1)
        return self.instances

    def folder(self) -> Path:
        """Where the nodes of this run have their files."""
        (folder,) = Path(self._place.name).glob("flexkv-serve-*")
        return folder

    def interrupt(self, within_s: float = 60) -> int:
        """Ends it as Ctrl-C does; its exit status."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(within_s)

    def ended(self, within_s: float = 60) -> int:
        """Waits until it has ended by itself; its exit status."""
        return self._process.wait(within_s)

    def close(self) -> None:
        """Ends it, if it has not ended, and takes its files away."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()  # its keeper ends what it has started
                self._process.wait()
        self._place.cleanup()


class Redis:
    """A Redis server, in memory, with a password."""

    def __init__(self) -> None:
        self.port = free_ports(1)
        self.password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, empty; waits until it listens."""
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", self.password]
        self._process = subprocess.Popen(
            ["redis-server", *words, "--save", "", "--appendonly", "no", "--dir", "/tmp"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,
        )
        until(self._listens, f"Redis listens at port {self.port}")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it, such as SIGSTOP and SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it; what it knew is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    close = kill

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[None]:
    """Closes all of them at the end, the last one first, whatever happens."""
    with contextlib.ExitStack() as stack:
        for thing in things:
            stack.callback(thing.close)
        yield


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens at."""
    for _ in range(100):
        with contextlib.ExitStack() as held:
            first = 20000 + secrets.randbelow(10000)
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGTERM)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []
