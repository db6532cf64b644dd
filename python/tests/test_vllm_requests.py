"""Real vLLM: what separates requests, what a reset separates, aborted requests, KV events."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_model
import pytest
from hosts import BLOCK, OWN, Host, hits, job, needs_vllm, prompt, tokens
from servers import Redis, closing, free_ports

pytestmark = needs_vllm

EXACT = {"dtype": "float32"}
"""With which tokens do not depend on where a prompt is split."""
NO_MEMORY = {"enable_prefix_caching": False, **EXACT}
"""An engine that looks up every prompt anew."""
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""For scripts that look into the scheduler."""
WHOLE = prompt(1, 1000)


def test_adapters_and_salts_share_with_themselves_only(host: Host, tmp_path: Path) -> None:
    one, other = (str(make_model.adapter(tmp_path / f"adapter-{n}", seed=n)) for n in (1, 2))
    with_adapters = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3, **NO_MEMORY}
    apart = [{}, {"lora": one}, {"lora": other}, {"salt": "s"}, {"salt": "t", "lora": one}]
    jobs = [job(WHOLE, 8, **more) for more in apart]
    first = host.engine([[each] for each in jobs], OWN, **with_adapters)
    assert hits(first) == [0] * 5
    assert len({tuple(answer) for answer in tokens(first)[:3]}) == 3, "adapters matter"

    # The same adapter by another name in another place; the other one has new weights in its place.
    shutil.copytree(one, tmp_path / "copy")
    jobs[1]["lora"], jobs[1]["lora_name"] = str(tmp_path / "copy"), "copy"
    make_model.adapter(Path(other), seed=3)
    jobs.append(job(WHOLE, 8, salt="u"))
    second = host.engine([[each] for each in jobs], OWN, **with_adapters)
    assert hits(second) == [7 * BLOCK, 7 * BLOCK, 0, 7 * BLOCK, 7 * BLOCK, 0]
    same = [0, 1, 3, 4]
    assert [tokens(second)[at] for at in same] == [tokens(first)[at] for at in same]


def test_images_share_with_themselves_only(host: Host, tmp_path: Path) -> None:
    model = tmp_path / "with-images"
    make_model.make_with_images(model)
    host.model = str(model)
    with_images = {"max_model_len": 1024, **NO_MEMORY}
    asked = WHOLE[:500]
    jobs = [job(asked, image=1), job(asked, image=2)]
    first = host.engine([[each] for each in jobs], OWN, **with_images)
    assert hits(first) == [0, 0]
    jobs.append(job(asked, image=3))
    second = host.engine([[each] for each in jobs], OWN, **with_images)
    assert hits(second) == [4 * BLOCK, 4 * BLOCK, 0]
    assert tokens(second)[:2] == tokens(first)


def test_a_reset_engine_finds_nothing_of_what_was_before(host: Host) -> None:
    """Nor does anybody else find what it computes from then on."""
    batches = [[job(WHOLE)]] * 3
    engine = {"script": "resets", "environ": IN_PROCESS}
    first = host.engine(batches, OWN, **engine, **NO_MEMORY)
    assert first["reset"] == [True, True]
    assert hits(first) == [0, 0, 0]
    assert tokens(first)[0] == tokens(first)[1] == tokens(first)[2]
    second = host.engine([[job(WHOLE)], [job(WHOLE)]], OWN, **engine, **NO_MEMORY)
    assert hits(second) == [7 * BLOCK, 0], "its own from before its reset, and of nobody after it"


@pytest.fixture
def redis() -> Iterator[Redis]:
    redis = Redis()
    with closing(redis):
        yield redis


def test_aborted_requests_leave_nothing_behind(host: Host, redis: Redis) -> None:
    shared = {
        "FLEXKV_REDIS_HOST": "127.0.0.1",
        "FLEXKV_REDIS_PORT": str(redis.port),
        "FLEXKV_REDIS_PASSWORD": redis.password,
        "FLEXKV_FETCH_DEADLINE_S": "30",
    }
    remote, fresh = job(prompt(1, 3900), 8), job(prompt(2, 3900), 8)
    first = host.engine([[remote]], OWN, environ={**shared, "FLEXKV_NODE_NAME": "a"}, **NO_MEMORY)
    (peer,) = host.nodes()
    own = {
        "FLEXKV_NODE_NAME": "b",
        "FLEXKV_METRICS_LISTEN": f"127.0.0.1:{free_ports(1)}",
        "FLEXKV_TEST_PEER": str(peer),
    }
    environ = {**shared, **IN_PROCESS, **own}
    second = host.engine([[remote], [fresh]], OWN, environ, script="aborts", **NO_MEMORY)
    assert all(count > 0 for count in second["aborted"].values()), second["aborted"]
    assert all(count > 0 for count in second["held"].values()), second["held"]
    assert not any(second["left"].values()), second["left"]
    assert hits(second)[0] == 30 * BLOCK
    assert tokens(second)[0] == tokens(first)[0]


def test_events_tell_what_the_node_holds(host: Host) -> None:
    """A node with room for ten blocks. What it stores is told as vLLM tells of its own memory, and
    what it evicts without that anybody looks for it."""
    ten = {"FLEXKV_CPU_CACHE_GB": str(10 * 4 * BLOCK * 1024 / (1 << 30))}
    config: dict[str, Any] = {"enable_kv_cache_events": True, "publisher": "zmq"}
    config["endpoint"] = f"ipc://{host.directory}/events"
    config["replay_endpoint"] = f"ipc://{host.directory}/events-again"
    jobs = [job(WHOLE, 2), job(WHOLE[: 2 * BLOCK] + prompt(2, 744), 2), job(WHOLE, 2, salt="s")]
    batches = [[each] for each in jobs]
    answer = host.engine(batches, OWN, ten, script="events", kv_events_config=config, **EXACT)

    def told(kind: str, medium: str) -> list[dict[str, Any]]:
        events = [each for each in answer["events"] if each["type"] == kind]
        return [each for each in events if each["medium"] == medium]

    stored, own = told("BlockStored", "CPU"), told("BlockStored", "GPU")
    assert [len(each["block_hashes"]) for each in stored] == [7, 5, 7]
    assert [each["token_ids"] for each in stored[::2]] == [WHOLE[: 7 * BLOCK]] * 2
    for name in ("block_hashes", "parent_block_hash", "token_ids", "block_size", "extra_keys"):
        assert [each.get(name) for each in stored] == [each.get(name) for each in own], name
    assert stored[1]["parent_block_hash"] == stored[0]["block_hashes"][1]
    assert stored[2]["extra_keys"][0] == ["s"], "by tokens alone it is the first prompt"

    gone = [value for each in told("BlockRemoved", "CPU") for value in each["block_hashes"]]
    assert len(set(gone)) == len(gone) == 9, "nineteen blocks for ten places"
    first, second, salted = (each["block_hashes"] for each in stored)
    left = [
        next((at for at, value in enumerate(blocks) if value in gone), 7)
        for blocks in (first, first[:2] + second, salted)
    ]
    reader = {**OWN, "kv_role": "kv_consumer"}
    fresh = host.engine(batches, reader, ten, enable_prefix_caching=False, **EXACT)
    assert hits(fresh) == [count * BLOCK for count in left], "what was not removed is there"
