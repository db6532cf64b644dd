"""Real vLLM servers with a node each: what one has computed another one loads from its node.

Three servers with connector in two runs of `flexkv serve`, as on two hosts, and one without. All
tests of the file use them, with prompts of their own; the last one kills some. Whatever is loaded,
the answer must be that of the server without connector which had the same part of the prompt in its
memory, computed in the same steps: where a prompt is split decides the last bits of every result.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hosts import BLOCK, needs_vllm, prompt
from servers import Answer, Instance, Metrics, Node, Redis, Serve, closing, until

pytestmark = needs_vllm

BLOCK_BYTES = 4 * 65536
SERVED = "flexkv_served_blocks_total"
HITS = "flexkv_hit_blocks_total"


class Cluster:
    """Servers `a`, `b` and `c` with a node each, and `plain` without any."""

    def __init__(self, first: Serve, others: Serve, alone: Serve) -> None:
        (self.a,) = first.ready()
        self.b, self.c = others.ready()
        (self.plain,) = alone.ready()
        self.first, self.others = first, others
        nodes = [instance.node for instance in (self.a, self.b, self.c)]
        for node in nodes:
            until(lambda node=node: node.metrics()("flexkv_peers") == 2, "nodes know each other")

    def expect(self, got: Answer, tokens: list[int], *before: list[int]) -> None:
        """Fails unless `got` is the answer to `tokens` of a server without connector that was asked
        `before`, and nothing else, and therefore has the same part of the prompt in its memory."""
        self.plain.forget()
        for earlier in before:
            ask(self.plain, earlier)
        alone = ask(self.plain, tokens)
        assert alone.cached == got.cached, "the test's own mistake: another split"
        assert got.tokens == alone.tokens
        assert got.logprobs == alone.logprobs


@pytest.fixture(scope="module")
def cluster(model: str) -> Iterator[Cluster]:
    redis = Redis()
    with closing(redis):
        first = Serve(model, 1, redis=redis)
        others = Serve(model, 2, redis=redis)
        alone = Serve(model, 1, connector=False)
        with closing(first, others, alone):
            yield Cluster(first, others, alone)


def ask(instance: Instance, tokens: list[int]) -> Answer:
    return instance.complete(tokens, logprobs=0)


def compute(instance: Instance, tokens: list[int], *nodes: Node) -> Answer:
    """Has it compute a prompt, and waits until all of `nodes` know of what it has stored."""
    before = [known(node) for node in nodes]
    answer = ask(instance, tokens)
    blocks = answer.saved // BLOCK
    for node, had in zip(nodes, before, strict=True):
        until(lambda node=node, had=had: known(node) == had + blocks, "its blocks are known")
    return answer


def known(node: Node) -> float:
    return node.metrics()("flexkv_known_replicas")


class Change:
    """How counters of an instance and of nodes change from its making on."""

    def __init__(self, instance: Instance, *others: Instance) -> None:
        self._instance = instance
        self._others = [instance, *others]
        self._vllm = instance.metrics()
        self._nodes = [other.node.metrics() for other in self._others]

    def settled(self, requests: int) -> Change:
        """Itself, once vLLM has counted this many requests; the others follow their requests."""
        name = "vllm:request_success_total"
        done = self._vllm(name) + requests
        until(lambda: self._instance.metrics()(name) == done, f"{requests} requests are counted")
        self._vllm_now = until(self._still, "counters stand still")
        self._nodes_now = [other.node.metrics() for other in self._others]
        return self

    def _still(self) -> Metrics | None:
        def counters(metrics: Metrics) -> list[object]:
            return [sample for sample in metrics.samples if "tokens" in sample[0]]

        first, second = self._instance.metrics(), self._instance.metrics()
        return second if counters(first) == counters(second) else None

    def vllm(self, name: str, **labels: str) -> float:
        """Of a counter of the instance."""
        return self._vllm_now(name, **labels) - self._vllm(name, **labels)

    def node(self, name: str, of: int = 0, **labels: str) -> float:
        """Of a counter of the instance's node, or of that of the other instance number `of`."""
        return self._nodes_now[of](name, **labels) - self._nodes[of](name, **labels)

    def sources(self) -> dict[str, float]:
        """Prompt tokens of the instance by source; fails if any two counters that tell the same
        differ: those of vLLM, of the connector and of the node."""
        by_source, cached = "vllm:prompt_tokens_by_source_total", {}
        for source in ("device", "host", "p2p", "disk", "external_unspecified"):
            cached[source] = self.vllm("vllm:prompt_tokens_cached_by_source_total", source=source)
        own = self.vllm("vllm:flexkv_hit_tokens_local_total")
        others = self.vllm("vllm:flexkv_hit_tokens_remote_total")
        memory = self.vllm("vllm:prefix_cache_hits_total")
        computed = self.vllm(by_source, source="local_compute")
        assert cached == {
            "device": memory,
            "host": own,
            "p2p": others,
            "disk": 0,
            "external_unspecified": 0,
        }
        assert self.vllm(by_source, source="local_cache_hit") == memory
        assert self.vllm(by_source, source="external_kv_transfer") == own + others
        assert self.vllm("vllm:external_prefix_cache_hits_total") == own + others
        assert self.vllm("vllm:prompt_tokens_total") == memory + own + others + computed
        assert self.vllm("vllm:flexkv_loaded_blocks_total") * BLOCK == own + others
        assert self.vllm("vllm:flexkv_loaded_bytes_total") * BLOCK == (own + others) * BLOCK_BYTES
        local, remote = self.node(HITS, source="local"), self.node(HITS, source="remote")
        assert self.node("flexkv_fetched_bytes_total") == remote * BLOCK_BYTES
        if memory:  # the node loads whole prefixes, also what the engine has of them
            assert local * BLOCK >= own
            assert remote * BLOCK >= others
        else:
            assert (local * BLOCK, remote * BLOCK) == (own, others)
        return {"memory": memory, "own": own, "others": others, "computed": computed}


def test_all_full_blocks_come_from_the_node_that_has_them(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    whole = prompt(1, 1000)
    first = compute(a, whole, b.node)
    assert (first.cached, first.hits, first.saved) == (0, 0, 7 * BLOCK)
    cluster.expect(first, whole)

    change = Change(b, a)
    second = ask(b, whole)
    assert (second.cached, second.remote, second.local) == (7 * BLOCK, 7 * BLOCK, 0)
    cluster.expect(second, whole, whole)
    assert change.settled(1).sources() == {
        "memory": 0,
        "own": 0,
        "others": 7 * BLOCK,
        "computed": 1000 - 7 * BLOCK,
    }
    until(lambda: change.settled(1).node(SERVED, of=1) == 7, "all were sent by the one owner")
    assert change.node("flexkv_served_bytes_total", of=1) == 7 * BLOCK_BYTES

    change = Change(b, a)
    again = ask(b, whole)
    assert (again.cached, again.hits) == (7 * BLOCK, 0)
    b.forget()
    reloaded = ask(b, whole)
    assert (reloaded.cached, reloaded.remote, reloaded.local) == (7 * BLOCK, 0, 7 * BLOCK)
    assert again.tokens == reloaded.tokens == second.tokens
    assert change.settled(2).sources() == {
        "memory": 7 * BLOCK,
        "own": 7 * BLOCK,
        "others": 0,
        "computed": 2 * (1000 - 7 * BLOCK),
    }
    assert change.node(SERVED, of=1) == 0


def test_of_a_shared_beginning_the_rest_is_computed(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    whole = prompt(2, 1000)
    shared = whole[:500] + prompt(3, 420)
    compute(a, whole, b.node)
    change = Change(b, a)
    answer = ask(b, shared)
    assert (answer.cached, answer.remote) == (3 * BLOCK, 3 * BLOCK)
    assert answer.saved == 4 * BLOCK, "what was computed is stored, what was loaded is not"
    cluster.expect(answer, shared, whole)
    assert change.settled(1).sources() == {
        "memory": 0,
        "own": 0,
        "others": 3 * BLOCK,
        "computed": 920 - 3 * BLOCK,
    }
    # Of the other prompt it has three blocks in its own memory and four at the other node.
    change = Change(b, a)
    answer = ask(b, whole)
    assert (answer.cached, answer.remote, answer.local) == (7 * BLOCK, 4 * BLOCK, 0)
    cluster.expect(answer, whole, whole)
    assert change.settled(1).vllm("vllm:prefix_cache_hits_total") == 3 * BLOCK
    assert change.vllm("vllm:external_prefix_cache_hits_total") == 4 * BLOCK
    until(lambda: change.settled(1).node(SERVED, of=1) == 4, "the other blocks were sent")


def test_a_prefix_is_put_together_from_two_nodes(cluster: Cluster) -> None:
    """A has its beginning and C the rest only: C's engine had the beginning, its node not."""
    a, b, c = cluster.a, cluster.b, cluster.c
    whole = prompt(4, 1000)
    begin = whole[: 3 * BLOCK + 1]
    assert compute(c, begin).saved == 3 * BLOCK
    restart(c)
    first = compute(a, begin, b.node, c.node)
    assert (first.hits, first.saved) == (0, 3 * BLOCK)
    rest = compute(c, whole, b.node)
    assert (rest.cached, rest.hits, rest.saved) == (3 * BLOCK, 0, 4 * BLOCK)

    change = Change(b, a, c)
    answer = ask(b, whole)
    assert (answer.cached, answer.remote) == (7 * BLOCK, 7 * BLOCK)
    cluster.expect(answer, whole, begin, whole)
    assert change.settled(1).sources()["others"] == 7 * BLOCK
    until(lambda: change.settled(1).node(SERVED, of=1) == 3, "the beginning was sent by A")
    until(lambda: change.settled(1).node(SERVED, of=2) == 4, "the rest was sent by C")


def restart(instance: Instance) -> None:
    """Kills its node; its engine starts another one, which has nothing."""
    before = instance.node.pid
    instance.node.signal(signal.SIGKILL)
    until(lambda: not instance.node.runs, "the node has ended")
    ask(instance, prompt(99, 2 * BLOCK))
    until(lambda: instance.node.pid != before and instance.node.runs, "there is another node")
    node = instance.node
    until(lambda: node.ready["pid"] == node.pid, "it is ready")

    def attached() -> bool:
        # The worker attaches when it has blocks to copy.
        ask(instance, prompt(99, 2 * BLOCK))
        return node.metrics()("flexkv_sessions") == 2

    until(attached, "scheduler and worker have it")
    until(lambda: node.metrics()("flexkv_peers") == 2, "it knows the others")


def test_a_wrong_byte_reaches_no_model(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    whole = prompt(5, 1000)
    good, bad = whole[: 3 * BLOCK + 1], whole[: 4 * BLOCK + 1]
    compute(a, good, b.node)
    before = a.node.blocks()
    assert compute(a, bad, b.node).saved == BLOCK
    (key,) = a.node.blocks().keys() - before.keys()
    compute(a, whole, b.node)
    a.node.spoil(a.node.blocks()[key])

    change, had = Change(b, a), known(a.node)
    answer = ask(b, whole)
    assert (answer.cached, answer.remote) == (3 * BLOCK, 3 * BLOCK)
    assert answer.saved == 4 * BLOCK
    cluster.expect(answer, whole, good)
    change.settled(1)
    assert change.node("flexkv_fetch_failures_total", outcome="corrupt") == 1
    assert change.node("flexkv_missed_blocks_total", reason="corrupt") == 1
    assert change.vllm("vllm:flexkv_hit_tokens_remote_total") == 3 * BLOCK

    # The owner finds out when its own engine asks, drops the block and gets it from B, which has
    # computed it meanwhile.
    until(lambda: known(a.node) == had + 7, "the blocks of B are known")
    change = Change(a)
    a.forget()
    answer = ask(a, whole)
    assert (answer.cached, answer.local, answer.remote) == (7 * BLOCK, 6 * BLOCK, BLOCK)
    change.settled(1)
    assert change.node("flexkv_local_corrupt_blocks_total") == 1
    assert change.sources()["others"] == BLOCK


def test_hit_rates_by_source_in_metrics_and_benchmark(cluster: Cluster) -> None:
    b, c = cluster.b, cluster.c
    chats = "--workload prefix --prefixes 3 --prefix-tokens 700 --question-tokens 200"
    words = [*chats.split(), "--requests=18", "--concurrency=2", "--answer-tokens=4", "--seed=7"]
    both = Change(b), Change(c)
    rows = {row["name"]: row for row in json.loads(bench(b, "--json", *words))}
    told = [change.settled(9).sources() for change in both]
    agree(rows, told, [b, c])
    for source in ("memory", "others", "computed"):
        assert sum(each[source] for each in told) > 0
    # The same again, with nothing in the engines' memory: all of it is in the nodes.
    b.forget()
    c.forget()
    both = Change(b), Change(c)
    text = bench(b, *words)
    told = [change.settled(9).sources() for change in both]
    assert sum(each["own"] for each in told) > 0
    for name, source in NAMES.items():
        (line,) = [line.split() for line in text.splitlines() if line.strip().startswith(name)]
        tokens = int(sum(each[source] for each in told))
        assert f"{tokens:,}" in line, text


NAMES = {
    "engine memory": "memory",
    "own node": "own",
    "other nodes": "others",
    "computed": "computed",
}
"""Sources by what the benchmark calls them."""


def agree(rows: dict, told: list[dict[str, float]], instances: list[Instance]) -> None:
    """Fails unless the benchmark's rows are what the metrics tell."""
    prompts = sum(sum(each.values()) for each in told)
    for name, source in NAMES.items():
        tokens = sum(each[source] for each in told)
        assert rows[f"prompt tokens, {name}"]["value"] == tokens
        share = rows[f"share of prompt tokens, {name}"]["value"]
        assert share == pytest.approx(100 * tokens / prompts)
        for instance, each in zip(instances, told, strict=True):
            row = rows[f"port {instance.port}: prompt tokens, {name}"]
            assert row["value"] == each[source]
    computed = sum(each["computed"] for each in told)
    assert rows["hit rate"]["value"] == pytest.approx(100 - 100 * computed / prompts)
    assert rows["counters disagree by"]["value"] == 0
    assert rows["failed"]["value"] == 0


def bench(first: Instance, *words: str) -> str:
    command = [sys.executable, "-m", "flexkv", "bench", "serve", "--base-url", first.url]
    command += ["--instances", "2", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_after_a_host_was_killed_its_replicas_serve(cluster: Cluster) -> None:
    """The last one: A's node and engine are killed; B has a replica of one of two prompts."""
    a, b, c = cluster.a, cluster.b, cluster.c
    copied, lost = prompt(6, 1000), prompt(7, 1000)
    compute(a, lost, b.node, c.node)
    compute(a, copied, b.node, c.node)
    assert ask(b, copied).remote == 7 * BLOCK
    a.node.signal(signal.SIGKILL)
    a.kill()
    assert cluster.first.ended() == 1
    assert "i0 ended: killed by signal 9" in cluster.first.log

    change = Change(c, b)
    answer = ask(c, copied)
    assert (answer.cached, answer.remote) == (7 * BLOCK, 7 * BLOCK)
    cluster.expect(answer, copied, copied)
    until(lambda: change.settled(1).node(SERVED, of=1) == 7, "B's replica was sent")
    answer = ask(c, lost)
    assert (answer.cached, answer.hits, answer.saved) == (0, 0, 7 * BLOCK)
    cluster.expect(answer, lost)
    # As soon as the others know that it is gone, its blocks are forgotten.
    until(lambda: c.node.metrics()("flexkv_peers") == 1, "A is known to be gone")
    assert cluster.others.interrupt() == 0, "the other instances went on"
