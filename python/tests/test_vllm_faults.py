"""Faults under load: two hosts serve 64 requests while something of the cache dies, stops or fills.

Every request that would be answered without the cache is answered with it, with the right tokens;
afterwards nothing is held: no ticket, no slot that is filled or read, no block of vLLM.

Which tokens are right: a reference engine without a connector computes each prompt once. Bits of a
result depend on how a prompt is split and on what is computed beside it, so tokens could differ
without anything being wrong. They do not here: engines compute in float32, where such differences
are around 1e-6, and the model's output projection is drawn so wide that the best token leads by
much more; the first test shows it before anything is broken. That a wrong prefix would be seen is
shown as well: the same question after another prefix has another answer. Requests of different
salts have the same answer but share no blocks, so blocks are computed, stored, loaded and fetched
all along.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
import servers
from servers import Instance, Node, Redis, Serve, until

pytestmark = hosts.needs_vllm

BLOCK = 32
IN_FLIGHT = 32
"""Requests in flight at each of two instances."""
FAMILIES, QUESTIONS, ANSWERS = 8, 16, 12
"""Prefixes, questions to each of them, tokens of an answer."""
SALTED = 384
"""Requests with the same salt."""
STRIDE = 64
"""Answers of an instance between two acts of a test."""
WITHIN_S = 180
"""Nothing here takes as long, even on a busy machine; what takes longer hangs."""
LEASE_S = 10
"""How long a node that says nothing is thought to be alive."""

VLLM = (
    "--dtype=float32",
    f"--block-size={BLOCK}",
    f"--max-num-seqs={IN_FLIGHT}",
    # Enough for the requests in flight, so that the engine's own prefix cache is of little use.
    "--num-gpu-blocks-override=240",
)


def prompts() -> list[list[int]]:
    """Every question after every prefix."""
    prefixes = [hosts.prompt(100 + family, 6 * BLOCK) for family in range(FAMILIES)]
    questions = [hosts.prompt(200 + number, 3 * BLOCK + 7 * number) for number in range(QUESTIONS)]
    return [prefix + question for prefix in prefixes for question in questions]


class Load:
    """Requests in flight at instances until it is stopped, each answer compared as it comes."""

    def __init__(self, expected: dict[tuple[int, ...], list[int]], name: str) -> None:
        self._expected = expected
        self._prompts = list(expected)
        self._name = name
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._excused: set[Instance] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._answers: dict[Instance, list[servers.Answer]] = {}
        self.longest_s = 0.0
        self.failures: list[str] = []

    @contextlib.contextmanager
    def at(self, *instances: Instance) -> Iterator[Load]:
        """Keeps requests in flight at these instances. In the end all must have been answered."""
        try:
            for instance in instances:
                self._answers[instance] = []
                for _ in range(IN_FLIGHT):
                    thread = threading.Thread(target=self._ask, args=(instance,), daemon=True)
                    self._threads.append(thread)
                    thread.start()
            yield self
        finally:
            self._stopped.set()
        self._wait()
        print(self.summary())

    def excuse(self, instance: Instance) -> None:
        """From now on requests to this instance may fail, and no more are sent."""
        self._excused.add(instance)

    def goes_on(self, *instances: Instance, answers: int = STRIDE) -> None:
        """Waits for so many more answers of each instance."""
        before = {instance: len(self._answers[instance]) for instance in instances}
        for instance, count in before.items():
            until(
                lambda: self.failures or len(self._answers[instance]) >= count + answers,
                f"{answers} more answers of {instance.url}",
                WITHIN_S,
            )
        assert not self.failures, self.failures[:5]

    def loaded(self, instance: Instance, source: str) -> int:
        """Tokens that an instance has loaded from `source`, in answers so far."""
        return sum(getattr(answer, source) for answer in self._answers[instance])

    def _wait(self) -> None:
        """Waits for the answers that are to come; none may be missing or wrong."""
        deadline = time.monotonic() + WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        assert not hanging, f"{hanging} requests are not answered in {WITHIN_S} s"
        assert not self.failures, f"{len(self.failures)} failures: {self.failures[:5]}"

    def summary(self) -> str:
        """What was answered."""
        told = [
            f"{len(answers)} answers, {self.loaded(instance, 'local')} tokens loaded from the "
            f"node, {self.loaded(instance, 'remote')} from the other"
            for instance, answers in self._answers.items()
        ]
        return f"{self._name}: {'; '.join(told)}; longest {self.longest_s:.1f} s"

    def _ask(self, instance: Instance) -> None:
        while not self._stopped.is_set() and instance not in self._excused:
            number = next(self._numbers)
            prompt = random.Random(number).choice(self._prompts)
            salt = f"{self._name} {number // SALTED}"
            began = time.monotonic()
            try:
                answer = instance.complete(list(prompt), ANSWERS, cache_salt=salt)
            except Exception as error:
                if instance not in self._excused:
                    self.failures.append(f"request {number} at {instance.url}: {error!r}")
                return
            with self._lock:
                self._answers[instance].append(answer)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
            if answer.tokens != self._expected[prompt]:
                self.failures.append(
                    f"request {number} at {instance.url}, {answer.local} + {answer.remote} tokens "
                    f"loaded: {answer.tokens} instead of {self._expected[prompt]}"
                )


class Host:
    """One host: a `flexkv serve` of one instance, whose node outlives it."""

    def __init__(self, model: str, redis: Redis, cache_gb: float) -> None:
        self._memory: dict[str, int] = {}
        self._files = Path(tempfile.mkdtemp(prefix="fkn-", dir="/tmp"))
        environ = {"FLEXKV_RUNTIME_DIR": str(self._files), "FLEXKV_FETCH_DEADLINE_S": "2"}
        self._serve = Serve(model, redis=redis, cache_gb=cache_gb, vllm=VLLM, environ=environ)
        (self.instance,) = self._serve.instances
        self.node = self.instance.node = Node(self._socket)

    def ready(self) -> Host:
        """Waits until it serves."""
        self._serve.ready()
        return self

    def close(self) -> None:
        """Ends it."""
        self._serve.close()
        for path in self._files.glob("*.pid"):
            if Node(lambda path=path: path).runs:
                os.kill(int(path.read_text()), signal.SIGKILL)
        shutil.rmtree(self._files)

    def held(self) -> dict[str, float]:
        """What the node has out and the engine has not freed."""
        node = self.node.metrics()
        held = {name: node(f"flexkv_{name}") for name in ("tickets", "pinned_slots")}
        return held | {"filling": node("flexkv_slots", use="filling")}

    def busy(self) -> dict[str, float]:
        """What the engine has not finished or not freed."""
        engine = self.instance.metrics()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return {name: engine(f"vllm:{name}") for name in names}

    def settles(self, sessions: int = 2) -> None:
        """Waits until nothing is held any more; scheduler and worker are attached."""
        if sessions:
            until(lambda: not any(self.busy().values()), "the engine is idle", WITHIN_S)
        until(lambda: not any(self.held().values()), "the node has nothing out", WITHIN_S)
        attached = "flexkv_sessions"
        until(lambda: self.node.metrics()(attached) == sessions, "engines attached", WITHIN_S)

    def knows(self, peers: int) -> None:
        """Waits until the node knows so many peers."""
        until(lambda: self.node.metrics()("flexkv_peers") == peers, f"{peers} peers", WITHIN_S)

    def memory(self) -> dict[str, int]:
        """Bytes of memory of its own that each process has."""
        processes = self.instance.processes() | {self.node.pid: "node"}
        return {title: _own_memory(pid) for pid, title in processes.items()}

    def has_not_grown(self) -> None:
        """Compares its memory with what it was at the first call; the node may be another process
        by now. vLLM's worker grows by some 300 MiB in its first 2,000 requests, also without a
        connector, and hardly after that."""
        now = self.memory()
        self._memory = self._memory or now
        for title, size in now.items():
            most = (512 if "Worker" in title else 64) << 20
            assert size - self._memory[title] < most, f"{title} has {size >> 20} MiB"
        assert self.arenas() == 1, "the memory of a node that died is given back"

    def arenas(self) -> int:
        """Arenas that a process of the engine has mapped, at most."""
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in self.instance.processes()]
        return max(len(set(re.findall(r"\d+ +/memfd:flexkv", text))) for text in maps)

    def _socket(self) -> Path:
        found = list(self._files.glob("*.pid"))
        assert found, "no node was started"
        return max(found, key=lambda path: path.stat().st_mtime).with_suffix(".sock")


class Cluster:
    """Two hosts that share a Redis, and the right answer to every prompt."""

    def __init__(self, model: str, expected: dict[tuple[int, ...], list[int]]) -> None:
        self.model = model
        self.expected = expected
        self.redis = Redis()
        self.hosts: list[Host] = []

    def add(self, cache_gb: float = 0.25) -> Host:
        """Starts one more host, which is not ready yet."""
        self.hosts.append(Host(self.model, self.redis, cache_gb))
        return self.hosts[-1]

    def load(self, name: str) -> Load:
        """A load for the instances to be put under."""
        return Load(self.expected, f"{name} {time.time()}")

    def close(self) -> None:
        """Ends everything."""
        for host in self.hosts:
            host.close()
        self.redis.close()


def _own_memory(pid: int) -> int:
    (line,) = re.findall(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(line) << 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[Cluster]:
    """Two hosts, and what an engine without a connector answers to every prompt."""
    options = {"dtype": "float32", "block_size": BLOCK, "max_num_seqs": IN_FLIGHT}
    host = hosts.Host(tmp_path_factory.mktemp("reference"), model)
    asked = prompts()
    answer = host.engine([[hosts.job(each, ANSWERS) for each in asked]], connector=None, **options)
    right = hosts.tokens(answer)
    for question in range(QUESTIONS):
        told = {tuple(tokens) for tokens in right[question::QUESTIONS]}
        assert len(told) == FAMILIES, "a wrong prefix changes the answer"
    cluster = Cluster(model, {tuple(each): it for each, it in zip(asked, right, strict=True)})
    with servers.closing(cluster):
        for started in [cluster.add(), cluster.add()]:
            started.ready()
        yield cluster


def both_settle(cluster: Cluster) -> None:
    """Waits until both hosts hold nothing and know each other; they have no more memory by then."""
    for host in cluster.hosts[:2]:
        host.settles()
        host.knows(1)
        host.has_not_grown()


@contextlib.contextmanager
def stopped(one: Redis | Node) -> Iterator[None]:
    """Stops a process, which goes on in the end."""
    one.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        one.signal(signal.SIGCONT)


def test_without_a_fault(cluster: Cluster) -> None:
    a, b = cluster.hosts
    a.knows(1)
    b.knows(1)
    with cluster.load("none").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance, answers=4 * STRIDE)
    for instance in (a.instance, b.instance):
        assert load.loaded(instance, "local") > 0, load.summary()
        assert load.loaded(instance, "remote") > 0, load.summary()
    both_settle(cluster)


def test_a_node_is_killed(cluster: Cluster) -> None:
    """Its engine goes on, has it started again, and finds it and its peer."""
    a, b = cluster.hosts
    with cluster.load("node killed").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance)
        killed = b.node.pid
        b.node.signal(signal.SIGKILL)
        load.goes_on(a.instance, b.instance)
        until(lambda: b.node.runs and b.node.pid != killed, "the node runs again", WITHIN_S)
        until(lambda: b.node.ready["pid"] != killed, "it is ready", WITHIN_S)
        b.knows(1)
        load.goes_on(a.instance, b.instance, answers=2 * STRIDE)
    both_settle(cluster)


def test_redis_comes_back_empty(cluster: Cluster) -> None:
    a, b = cluster.hosts
    with cluster.load("Redis killed").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance)
        cluster.redis.kill()
        load.goes_on(a.instance, b.instance)
        cluster.redis.start()
        load.goes_on(a.instance, b.instance)
    both_settle(cluster)


def test_redis_stops_and_goes_on(cluster: Cluster) -> None:
    a, b = cluster.hosts
    with cluster.load("Redis stopped").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance)
        with stopped(cluster.redis):
            load.goes_on(a.instance, b.instance)
            time.sleep(1.5 * LEASE_S)
            load.goes_on(a.instance, b.instance)
        load.goes_on(a.instance, b.instance)
    both_settle(cluster)


def test_a_peer_is_stopped_for_longer_than_its_lease(cluster: Cluster) -> None:
    """Its own engine and the other go on without it, and with it when it does."""
    a, b = cluster.hosts
    with cluster.load("peer stopped").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance)
        with stopped(a.node):
            load.goes_on(a.instance, b.instance)
            time.sleep(1.5 * LEASE_S)
            b.knows(0)
            load.goes_on(a.instance, b.instance)
        b.knows(1)
        load.goes_on(a.instance, b.instance)
    both_settle(cluster)


def test_an_engine_is_killed(cluster: Cluster) -> None:
    """Its node takes back what it held, and goes on serving its peer."""
    a, b = cluster.hosts
    with cluster.load("engine killed").at(a.instance, b.instance) as load:
        load.goes_on(a.instance, b.instance)
        load.excuse(b.instance)
        b.instance.kill()
        b.settles(sessions=0)
        remote = load.loaded(a.instance, "remote")
        load.goes_on(a.instance, answers=2 * STRIDE)
        assert load.loaded(a.instance, "remote") > remote, "what it had computed is still loaded"
    a.settles()
    a.knows(1)
    b.settles(sessions=0)


def test_an_arena_is_full(cluster: Cluster) -> None:
    """A node with room for the blocks of few requests: most are refused, or evicted at once."""
    a = cluster.hosts[0]
    small = cluster.add(cache_gb=0.005).ready()
    small.knows(2)
    with cluster.load("arena full").at(a.instance, small.instance) as load:
        load.goes_on(a.instance, small.instance, answers=4 * STRIDE)
    assert load.loaded(small.instance, "hits") > 0, load.summary()
    metrics = small.node.metrics()
    assert metrics("flexkv_refused_blocks_total") > 0
    assert metrics("flexkv_evicted_blocks_total") > metrics("flexkv_slots")
    for host in (a, small):
        host.settles()
