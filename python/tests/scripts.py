"""What engines do in tests that is more than answering jobs: each a function of an engine in this
process and the batches of jobs, called by `engine.py`. Knows nothing of what a test looks for.
"""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import engine as engines
import msgspec
import zmq

_DEADLINE_S = 60.0


def resets(engine: Any, batches: list[list[dict]]) -> dict[str, Any]:
    """Answers the jobs, with the caches reset before each batch but the first."""
    results, told = [], []
    for index, batch in enumerate(batches):
        if index:
            told.append(engine.reset_prefix_cache(reset_connector=True))
        results.append(engines.generate(engine, batch))
        time.sleep(0.3)
    return {"results": results, "reset": told}


def events(engine: Any, batches: list[list[dict]]) -> dict[str, Any]:
    """Answers the jobs; tells the KV events from the first one on, once what each batch saved was
    announced and nothing more comes."""
    config = engine.llm_engine.vllm_config.kv_events_config
    idle = {"tokens": [4, 5, 6], "max_tokens": 4}
    results, saved, told = [], 0, []
    deadline = time.monotonic() + _DEADLINE_S
    for batch in batches:
        results.append(engines.generate(engine, batch))
        saved += sum(result["told"]["flexkv_saved_tokens"] for result in results[-1])
        before = None
        while time.monotonic() < deadline and (before != told or _announced(told) < saved):
            before = told
            time.sleep(0.5)
            engines.generate(engine, [idle])  # vLLM collects events at each step
            told = _published(config.replay_endpoint)
    return {"results": results, "events": told}


def aborts(engine: Any, batches: list[list[dict]]) -> dict[str, Any]:
    """Aborts requests while their blocks are fetched, loaded and saved; then answers the jobs.

    The first batch is on a node of another host, whose process is `FLEXKV_TEST_PEER`; nobody has
    the second one.
    """
    remote, fresh = batches
    side, core = _side(engine), engine.llm_engine.engine_core.engine_core
    free = core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    at_first, aborted, held = free(), {}, {}

    def fetching(each: Any) -> bool:
        return each.fetch is not None and each.fetch.ready_since is None

    peer = int(os.environ["FLEXKV_TEST_PEER"])
    os.kill(peer, signal.SIGSTOP)
    try:
        aborted["fetch"], held["fetch"] = _abort(engine, remote, fetching)
    finally:
        os.kill(peer, signal.SIGCONT)
    _quiet(engine)
    engines.generate(engine, remote)
    aborted["load"], held["load"] = _abort(engine, remote * 8, lambda each: each.loading)
    _quiet(engine)
    aborted["save"], _ = _abort(engine, fresh * 8, lambda each: bool(each.open_saves))
    _quiet(engine)
    left = {
        "tickets": _tickets(),
        "requests": len(side._tracked),
        "leaving": len(side._leaving),
        "saves": len(side._open),
        "blocks": at_first - free(),
    }
    results = [engines.generate(engine, batch) for batch in batches]
    return {"results": results, "aborted": aborted, "held": held, "left": left}


def _side(engine: Any) -> Any:
    """The scheduler side of the connector, in an engine without processes of its own."""
    return engine.llm_engine.engine_core.engine_core.scheduler.connector._impl._scheduler.side


def _abort(engine: Any, jobs: list[dict], midway: Callable[[Any], bool]) -> tuple[int, int]:
    """Asks jobs and aborts them when the first of them are `midway`; how many were, and how many
    tickets the node had given."""
    side = _side(engine)
    names = [f"aborted-{time.monotonic_ns()}-{index}" for index in range(len(jobs))]
    for name, job in zip(names, jobs, strict=True):
        engine.llm_engine.add_request(name, engines.prompt(job), engines.sampling(job))
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        engine.llm_engine.step()
        found = sum(midway(each) for each in side._tracked.values())
        if found:
            tickets = _tickets()
            engine.llm_engine.abort_request(names)
            return found, tickets
        if not engine.llm_engine.has_unfinished_requests():
            return 0, 0
    raise TimeoutError("no request came so far")


def _quiet(engine: Any) -> None:
    """Lets the engine go on until nothing is under way."""
    side = _side(engine)
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        engine.llm_engine.step()
        if not (side._tracked or side._leaving or side._open or _tickets()):
            return
        time.sleep(0.01)


def _tickets() -> int:
    """What the engine's node holds for engines."""
    url = f"http://{os.environ['FLEXKV_METRICS_LISTEN']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("flexkv_tickets{")]
    return int(float(line.rsplit(" ", 1)[1]))


def _announced(told: list[dict[str, Any]]) -> int:
    """Tokens that were announced to be stored in a node."""
    stored = [each for each in told if each["type"] == "BlockStored" and each["medium"] == "CPU"]
    return sum(len(each["token_ids"]) for each in stored)


def _published(endpoint: str) -> list[dict[str, Any]]:
    """All KV events so far, as vLLM tells them to those who listen late."""
    told = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as listener:
        listener.connect(endpoint)
        listener.send_multipart([b"", (0).to_bytes(8, "big")])
        while listener.poll(1000 * _DEADLINE_S):
            *_, payload = listener.recv_multipart()
            if not payload:
                return told
            _, events, *_ = msgspec.msgpack.decode(payload)
            told += msgspec.to_builtins(events)
    raise TimeoutError("vLLM does not tell its events again")
