"""Real vLLM on a small model: a fresh engine loads what another one computed, and nothing else.

Needs vLLM and the native module. Each engine is a process of its own; they run one after the other
and share a node. Outputs are compared with an engine without a connector that has the same part of
the prompt cached: where a prompt is split decides the last bits of every result.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hosts import BLOCK, BUILT_IN, OWN, Host, hits, job, needs_vllm, prompt, tokens, without_connector

pytestmark = needs_vllm


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


def test_a_node_is_told_how_fast_its_engine_computes_prompts(host: Host) -> None:
    """By steps full of prompts; the next lookup tells it. Compared with the times that vLLM tells."""
    full = [job(prompt(20 + index, 4000), 1) for index in range(4)]
    answer = host.engine([full, [job(prompt(30, 300))]], max_num_batched_tokens=1024)
    begun, ended = zip(*(each["prefill"] for each in answer["results"][0]), strict=True)
    computed = 4 * 4000 / (max(ended) - min(begun))
    told = answer["metrics"]["vllm:flexkv_recompute_tokens_per_second"]
    assert computed / 2 < told < computed * 2


def test_a_wrong_byte_in_the_node_is_never_used(host: Host) -> None:
    whole = prompt(1, 1000)
    host.engine([[job(whole)]])
    host.spoil(2, block_bytes=4 * 65536)
    answer = host.engine([[job(whole)]])
    (loaded,) = hits(answer)
    assert loaded < 7 * BLOCK, "the blocks before the wrong one are used, no others"
    assert tokens(answer) == without_connector(host, [job(whole)], [loaded])


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
