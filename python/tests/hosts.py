"""A host with a node of its own, on which engines run one after the other, for tests on real vLLM.

Each engine is a process of its own (`engine.py`). Knows nothing of what a test looks for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_model
import pytest

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or importlib.util.find_spec("flexkv._native") is None,
    reason="needs vLLM and the native module",
)

HERE = Path(__file__).parent
BLOCK = 128
"""Tokens of a block of vLLM on CPUs."""
BUILT_IN = {"kv_connector": "FlexKVConnectorV1", "kv_role": "kv_both"}
OWN = {
    "kv_connector": "FlexKVConnector",
    "kv_connector_module_path": "flexkv.integration.vllm.connector",
    "kv_role": "kv_both",
}


class Host:
    """A host with one node at most, on which engines run one after the other."""

    def __init__(self, directory: Path, model: str) -> None:
        directory.chmod(0o700)
        self.directory = directory
        self.model = model
        self.log = ""

    def engine(
        self,
        batches: list[Any],
        connector: dict[str, str] | None = BUILT_IN,
        environ: dict[str, str] | None = None,
        script: str | None = None,
        **engine: Any,
    ) -> dict[str, Any]:
        """Runs an engine of its own; `script` names a way to run the batches in `scripts.py`."""
        spec = {"model": self.model, "batches": batches, "connector": connector, "engine": engine}
        path = self.directory / "spec.json"
        path.write_text(json.dumps(spec | {"script": script}))
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
        """The processes of the nodes that engines started here."""
        return [int(path.read_text()) for path in self.directory.glob("*.pid")]

    def spoil(self, block: int, block_bytes: int) -> None:
        """Flips a bit in the block that lies at place `block` of those in the node's memory."""
        (pid,) = self.nodes()
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in maps if "memfd" in line]
        size, start = max((int(high, 16) - int(low, 16), int(low, 16)) for low, high in ranges)
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

    def end(self) -> None:
        """Ends the nodes."""
        for pid in self.nodes():
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and str(self.directory).encode() in command.read_bytes():
                os.kill(pid, signal.SIGKILL)


def prompt(seed: int, count: int) -> list[int]:
    """Tokens drawn by chance."""
    draw = random.Random(seed)
    return [draw.randrange(4, make_model.VOCABULARY) for _ in range(count)]


def job(tokens: list[int], max_tokens: int = 16, **more: Any) -> dict[str, Any]:
    """A request, as `engine.py` reads it."""
    return {"tokens": tokens, "max_tokens": max_tokens, **more}


def tokens(answer: dict[str, Any]) -> list[list[int]]:
    """The output of each request."""
    return [result["tokens"] for batch in answer["results"] for result in batch]


def hits(answer: dict[str, Any]) -> list[int]:
    """Tokens of each prompt that were loaded."""
    return [
        result["told"]["flexkv_hit_tokens_local"] + result["told"]["flexkv_hit_tokens_remote"]
        for batch in answer["results"]
        for result in batch
    ]


def without_connector(
    host: Host, jobs: list[dict[str, Any]], cached: list[int], **engine: Any
) -> list[list[int]]:
    """The output of each job by an engine that computed the first `cached` tokens before."""
    batches: list[Any] = []
    for each, count in zip(jobs, cached, strict=True):
        if count:
            batches.append([{**each, "tokens": each["tokens"][: count + 1], "max_tokens": 1}])
        batches.append([each])
    answer = tokens(host.engine(batches, connector=None, **engine))
    ends = [index for index, batch in enumerate(batches) if batch[0] in jobs]
    return [answer[index] for index in ends]
