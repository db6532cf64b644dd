"""Real vLLM with two tensor-parallel ranks: each has a shard of every block, under its own key, and
a block counts only if both shards are there.
"""

from __future__ import annotations

from typing import Any

from hosts import BLOCK, OWN, Host, hits, job, needs_vllm, prompt, tokens, without_connector

pytestmark = needs_vllm

RANKS = {"tensor_parallel_size": 2}
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""vLLM's own choice wants a NUMA node for each rank."""
SHARD_BYTES = 4 * 32768
"""Of a block: the small model's layers, with half of the heads."""


def engine(host: Host, batches: list[Any], **more: Any) -> dict[str, Any]:
    """Runs an engine of two ranks."""
    return host.engine(batches, **{"connector": OWN, "environ": UNBOUND, **RANKS, **more})


def test_a_fresh_engine_of_two_ranks_loads_both_shards_or_nothing(host: Host) -> None:
    whole = prompt(1, 1000)
    shared = whole[:500] + prompt(2, 300)
    first = engine(host, [[job(whole)]])
    assert hits(first) == [0]
    assert first["metrics"]["vllm:flexkv_stored_blocks"] == 2 * 7, "a shard of each rank"

    # Each in an engine that has nothing itself.
    jobs = [job(shared), job(whole)]
    second = engine(host, [[each] for each in jobs], enable_prefix_caching=False)
    assert hits(second) == [3 * BLOCK, 7 * BLOCK]
    assert second["metrics"]["vllm:flexkv_loaded_blocks"] == 2 * 10
    assert second["metrics"]["vllm:flexkv_loaded_bytes"] == 2 * 10 * SHARD_BYTES

    # One wrong byte in one shard: that block is not promised, and from then on its shard is missing.
    host.spoil(2, SHARD_BYTES)
    reader = OWN | {"kv_role": "kv_consumer"}
    again = [[job(whole)], [job(whole)]]
    third = engine(host, again, connector=reader, enable_prefix_caching=False)
    found, missing = hits(third)
    assert found == missing < 7 * BLOCK
    assert third["metrics"]["vllm:flexkv_failed_loads"] == 0, "it was never promised"

    # Whoever computes it stores it again; one shard of it was there all along.
    fourth = engine(host, [[job(whole)], [job(whole)]], enable_prefix_caching=False)
    assert hits(fourth) == [found, 7 * BLOCK]

    # Salts keep the reference engine's own cached prompts apart.
    plain = [job(shared, salt="a"), job(whole, salt="b"), job(whole, salt="c")]
    split = [3 * BLOCK, 7 * BLOCK, found]
    expected = without_connector(host, plain, split, environ=UNBOUND, **RANKS)
    assert tokens(second) == expected[:2]
    assert tokens(third) == [expected[2]] * 2
    assert tokens(fourth) == [expected[2], expected[1]]

    # An engine of one rank has other blocks, and finds none of these in their node.
    (node,) = host.directory.glob("*.sock")
    single = host.engine([[job(whole)]], OWN, environ={"FLEXKV_NODE_SOCKET": str(node)})
    assert hits(single) == [0]
    assert "serves" in host.log
    assert tokens(single) == without_connector(host, [job(whole)], [0])
