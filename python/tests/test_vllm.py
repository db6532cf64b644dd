"""Real vLLM on a small model: a fresh engine loads what another one computed, and nothing else.

Needs vLLM and the native module. Each engine is a process of its own; they run one after the other
and share a node. Outputs are compared with an engine without a connector that has the same part of
the prompt cached: where a prompt is split decides the last bits of every result.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_model
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or importlib.util.find_spec("flexkv._native") is None,
    reason="needs vLLM and the native module",
)

HERE = Path(__file__).parent
BLOCK = 128
BUILT_IN = {"kv_connector": "FlexKVConnectorV1", "kv_role": "kv_both"}
OWN = {
    "kv_connector": "FlexKVConnector",
    "kv_connector_module_path": "flexkv.integration.vllm.connector",
    "kv_role": "kv_both",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_model.make(path)
    return str(path)


class Host:
    """A host with one node at most, on which engines run one after the other."""

    def __init__(self, directory: Path, model: str) -> None:
        self.directory = directory
        self.model = model
        self.log = ""

    def engine(
        self,
        batches: list[Any],
        connector: dict[str, str] | None = BUILT_IN,
        environ: dict[str, str] | None = None,
        **engine: Any,
    ) -> dict[str, Any]:
        """Runs an engine of its own."""
        spec = {"model": self.model, "batches": batches, "connector": connector, "engine": engine}
        path = self.directory / "spec.json"
        path.write_text(json.dumps(spec))
        done = subprocess.run(
            [sys.executable, str(HERE / "engine.py"), str(path)],
            env={
                **os.environ,
                "FLEXKV_RUNTIME_DIR": str(self.directory),
                "FLEXKV_CPU_CACHE_GB": "0.5",
                **(environ or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        self.log = done.stdout
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert results, done.stdout[-6000:]
        return json.loads(results[0].removeprefix("RESULT "))

    def nodes(self) -> list[int]:
        return [int(path.read_text()) for path in self.directory.glob("*.pid")]

    def end(self) -> None:
        for pid in self.nodes():
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and str(self.directory).encode() in command.read_bytes():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def host(tmp_path: Path, model: str) -> Iterator[Host]:
    tmp_path.chmod(0o700)
    host = Host(tmp_path, model)
    yield host
    host.end()


def prompt(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(4, make_model.VOCABULARY) for _ in range(count)]


def job(tokens: list[int], max_tokens: int = 16) -> dict[str, Any]:
    return {"tokens": tokens, "max_tokens": max_tokens}


def tokens(answer: dict[str, Any]) -> list[list[int]]:
    return [result["tokens"] for batch in answer["results"] for result in batch]


def hits(answer: dict[str, Any]) -> list[int]:
    """Tokens of each prompt that were loaded."""
    return [
        result["told"]["flexkv_hit_tokens_local"] + result["told"]["flexkv_hit_tokens_remote"]
        for batch in answer["results"]
        for result in batch
    ]


def without_connector(host: Host, jobs: list[dict[str, Any]], cached: list[int]) -> list[list[int]]:
    """The output of each job by an engine that computed the first `cached` tokens before."""
    batches: list[Any] = []
    for each, count in zip(jobs, cached, strict=True):
        if count:
            batches.append([job(each["tokens"][: count + 1], 1)])
        batches.append([each])
    answer = tokens(host.engine(batches, connector=None))
    ends = [index for index, batch in enumerate(batches) if batch[0] in jobs]
    return [answer[index] for index in ends]


@pytest.mark.parametrize("connector", [BUILT_IN, OWN], ids=["built-in", "own"])
def test_a_fresh_engine_loads_all_full_blocks(host: Host, connector: dict[str, str]) -> None:
    whole = prompt(1, 1000)
    shared = whole[:500] + prompt(2, 300)
    other = prompt(3, 700)
    first = host.engine([[job(whole)]], connector)
    assert hits(first) == [0]
    assert first["results"][0][0]["told"]["flexkv_saved_tokens"] == 7 * BLOCK

    jobs = [job(shared), job(whole), job(other)]
    second = host.engine([[each] for each in jobs], connector)
    assert hits(second) == [3 * BLOCK, 4 * BLOCK, 0], "three of seven blocks are loaded by then"
    assert second["metrics"]["vllm:external_prefix_cache_hits"] == 7 * BLOCK
    if connector is OWN:  # the built-in one has no metrics unless the plugin is installed
        assert second["metrics"]["vllm:flexkv_hit_tokens_local"] == 7 * BLOCK
        assert second["metrics"]["vllm:flexkv_loaded_blocks"] == 7
    third = host.engine([[job(whole)]], connector)
    assert hits(third) == [7 * BLOCK]
    expected = without_connector(host, jobs, [3 * BLOCK, 7 * BLOCK, 0])
    assert tokens(second) == expected
    assert tokens(third) == [expected[1]]


def test_chunks_preemption_and_many_requests_at_once(host: Host) -> None:
    """A KV cache too small for its requests: they are preempted while they are saved and loaded."""
    jobs = [job(prompt(10 + index, 400 + 17 * index), 200) for index in range(12)]
    exact = {"dtype": "float32"}
    small = {"num_gpu_blocks_override": 34, "max_num_batched_tokens": 256, **exact}
    first = host.engine([jobs], **small)
    assert sum(hits(first)) > 0, "requests that were preempted load what was saved of them"
    again = host.engine([jobs], **small)
    assert sum(hits(again)) >= 12 * 3 * BLOCK
    assert all(len(output) == 200 for output in tokens(first) + tokens(again))
    plain = host.engine([jobs], connector=None, **exact)
    assert tokens(first) == tokens(again) == tokens(plain)


def test_a_wrong_byte_in_the_node_is_never_used(host: Host) -> None:
    whole = prompt(1, 1000)
    host.engine([[job(whole)]])
    spoil(host, block=2)
    answer = host.engine([[job(whole)]])
    (loaded,) = hits(answer)
    assert loaded < 7 * BLOCK, "the blocks before the wrong one are used, no others"
    assert tokens(answer) == without_connector(host, [job(whole)], [loaded])


def spoil(host: Host, block: int) -> None:
    """Flips a bit in the block that lies at place `block` of those in the node's memory."""
    (pid,) = host.nodes()
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if "memfd" in line]
    size, start = max((int(high, 16) - int(low, 16), int(low, 16)) for low, high in ranges)
    block_bytes = 4 * 65536
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        filled = []
        for at in range(start, start + size - block_bytes, 4096):
            memory.seek(at)
            page = memory.read(64)
            if any(page) and (not filled or at - filled[-1] >= block_bytes):
                filled.append(at)
        memory.seek(filled[block] + 4096)
        byte = memory.read(1)
        memory.seek(filled[block] + 4096)
        memory.write(bytes([byte[0] ^ 1]))


def test_an_engine_without_a_node_serves(host: Host) -> None:
    environ = {"FLEXKV_NODE_COMMAND": "false", "FLEXKV_ATTACH_TIMEOUT_S": "1"}
    whole = prompt(1, 1000)
    answer = host.engine([[job(whole)]], environ=environ)
    assert hits(answer) == [0]
    assert tokens(answer) == without_connector(host, [job(whole)], [0])


def test_wrong_settings_end_the_start(host: Host) -> None:
    with pytest.raises(AssertionError, match="FLEXKV_CPU_CACHE_GB must be a number"):
        host.engine([[job(prompt(1, 10))]], environ={"FLEXKV_CPU_CACHE_GB": "lots"})


def test_the_plugin_gives_the_built_in_name_its_metrics() -> None:
    program = (
        "from flexkv.integration.vllm import plugin; plugin.register(); plugin.register()\n"
        "from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory as F\n"
        "for name in ('FlexKVConnectorV1', 'FlexKVConnector'):\n"
        "    connector = F.get_connector_class_by_name(name)\n"
        "    print(connector.__module__, connector.build_kv_connector_stats({'lookups': 2}).data)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if "connector" in line]
    assert lines[-2:] == ["flexkv.integration.vllm.connector {'lookups': 2}"] * 2, done.stderr
