"""What the connector costs and gains on real vLLM: `cargo xtask vllm --bench`.

Instances that `flexkv serve` starts answer the same kind of requests in turn: without a connector,
with ours, with ours that loads only, with vLLM's own `ExampleConnector`. All compute on the same
cores. Every round has one measurement of each, and what is told is the median over rounds of what
stands side by side in a round, with its quartiles. Prompts are random and new in each round.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import make_model
from servers import BLOCK, Instance, Redis, Serve, until

SAME_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}
# A prompt in one step, as `ExampleConnector` saves no more than the first.
VLLM = ("--num-gpu-blocks-override=64", "--max-num-seqs=8", "--max-num-batched-tokens=4096")
PLAIN, OURS, OTHER = "vLLM alone", "our connector", "our connector, other node"
LOADS, EXAMPLE = "our connector, saving off", "ExampleConnector"
TTFT_TOKENS = 1000
BURST = {"requests": 8, "at_once": 4, "tokens": 300, "answer": 16}
HIT_TOKENS = 3500
FULL = (HIT_TOKENS - 1) // BLOCK
"""Blocks of such a prompt that can be loaded."""
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """A figure, as all benches of the project print them."""

    name: str
    value: float
    unit: str
    better: str
    target: float | None = None
    peer: str | None = None
    peer_value: float | None = None


class Figures:
    """The rows so far, with the quartiles of each."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._spreads: list[str] = []

    def add(
        self,
        name: str,
        unit: str,
        values: list[float],
        better: str = "lower",
        target: float | None = None,
        example: list[float] | None = None,
    ) -> None:
        """Adds the median of `values`; `example` are those of vLLM's connector beside it."""
        row = Row(name, statistics.median(values), unit, better, target)
        if example:
            row.peer, row.peer_value = EXAMPLE, statistics.median(example)
        self.rows.append(row)
        low, _, high = (
            statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
        )
        self._spreads.append(f"{low:.3g} .. {high:.3g} ({len(values)})")

    def show(self) -> None:
        """Prints the table."""
        head = ("what", "value", "quartiles (rounds)", "target", EXAMPLE)
        lines = [head]
        for row, spread in zip(self.rows, self._spreads, strict=True):
            target = "" if row.target is None else f"{row.target:.4g} {row.unit}"
            peer = "" if row.peer_value is None else f"{row.peer_value:.4g} {row.unit}"
            lines.append((row.name, f"{row.value:.4g} {row.unit}", spread, target, peer))
        widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
        for line in lines:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


@dataclass(frozen=True)
class Answer:
    """One answered request."""

    first_s: float
    """Until its first token came."""
    tokens: list[int]


def ask(instance: Instance, prompt: list[int], max_tokens: int = 1) -> Answer:
    """Sends one request and reads its stream."""
    body = {
        "model": instance.serve.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=300)
    with contextlib.closing(connection):
        connection.connect()
        began = time.perf_counter()
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        first, tokens = 0.0, []
        while line := response.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "choices" in event, f"{event}\n{instance.serve.log[-4000:]}"
                tokens += event["choices"][0].get("token_ids") or []
                if tokens and not first:
                    first = time.perf_counter() - began
    assert len(tokens) == max_tokens, f"{instance.url} answered {len(tokens)} tokens"
    return Answer(first, tokens)


def burst(instance: Instance, prompts: list[list[int]]) -> float:
    """Answers a second, of requests of which some are under way at any time."""
    waiting, failed = list(prompts), []

    def work() -> None:
        try:
            while True:
                ask(instance, waiting.pop(), BURST["answer"])
        except IndexError:
            return
        except Exception as error:  # told by the thread that started this one
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(BURST["at_once"])]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return len(prompts) / (time.perf_counter() - began)


def processor_s(pids: list[int]) -> float:
    """Processor seconds of processes, with what their ended threads had."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_A_SECOND


def threads_s(pids: list[int], prefix: str) -> float:
    """Processor seconds of those threads whose names begin with `prefix`."""
    nanoseconds = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                if (task / "comm").read_text().startswith(prefix):
                    nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def resident_mb(pid: int) -> float:
    """Memory of a process, its share of what several have."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


@contextlib.contextmanager
def spent(spend: list[float], measure: Callable[[], float]) -> Iterator[None]:
    """Adds to `spend` what `measure` grew by."""
    before = measure()
    yield
    spend.append(measure() - before)


class Bench:
    """The servers that answer, by their arms."""

    def __init__(self, model: Path, arms: frozenset[str], stack: contextlib.ExitStack) -> None:
        self._model = str(model)
        self._stack = stack
        self._draw = random.Random()
        self.figures = Figures()
        self.arms: dict[str, Instance] = {}
        # One after the other: starts that share two cores take longer than they do in turn.
        if PLAIN in arms:
            (self.arms[PLAIN],) = self._serve(connector=False)
        if OTHER in arms:
            redis = Redis()
            stack.callback(redis.close)
            self.arms[OURS], self.arms[OTHER] = self._serve(2, redis=redis, cache_gb=1)
        elif OURS in arms:
            (self.arms[OURS],) = self._serve(shared_node=True, cache_gb=1)
        if LOADS in arms:
            (self.arms[LOADS],) = self._serve(
                shared_node=True, vllm=connector("FlexKVConnectorV1", "kv_consumer")
            )
        if EXAMPLE in arms:
            files = stack.enter_context(tempfile.TemporaryDirectory(dir=_memory()))
            options = connector("ExampleConnector", "kv_both", shared_storage_path=files)
            (self.arms[EXAMPLE],) = self._serve(shared_node=True, vllm=options)
        for instance in self.arms.values():
            ask(instance, self._prompt(HIT_TOKENS), 2)
        self._pids = {arm: list(each.processes()) for arm, each in self.arms.items()}
        ours = [self.arms[arm] for arm in (OURS, OTHER, LOADS) if arm in self.arms]
        self._nodes = {each.port: each.node.pid for each in ours}
        self._started = self.arms

    def run(self, part: Part, rounds: int | None) -> None:
        """Measures one part on the arms that it compares."""
        self.arms = {arm: each for arm, each in self._started.items() if arm in part.arms}
        part.measure(self, rounds or part.rounds)

    def _serve(self, count: int = 1, vllm: tuple[str, ...] = (), **more: Any) -> list[Instance]:
        serve = Serve(self._model, count, vllm=(*VLLM, *vllm), environ=SAME_CORES, **more)
        self._stack.callback(serve.close)
        return serve.ready()

    def _prompt(self, count: int) -> list[int]:
        return [self._draw.randrange(4, make_model.VOCABULARY) for _ in range(count)]

    def _spent(self, arm: str) -> float:
        """Processor seconds of an arm's instance and its node."""
        node = self._nodes.get(self.arms[arm].port)
        return processor_s(self._pids[arm] + ([node] if node is not None else []))

    def _in_turn(self) -> list[str]:
        """The arms, in another order in each round."""
        arms = list(self.arms)
        self._draw.shuffle(arms)
        return arms

    def misses(self, rounds: int) -> None:
        """Time to the first token of prompts that nobody has seen."""
        first: dict[str, list[float]] = {arm: [] for arm in self.arms}
        cpu: dict[str, list[float]] = {arm: [] for arm in self.arms}
        for _ in range(rounds):
            for arm in self._in_turn():
                with spent(cpu[arm], lambda arm=arm: self._spent(arm)):
                    answer = ask(self.arms[arm], self._prompt(TTFT_TOKENS))
                first[arm].append(answer.first_s)
        name = f"TTFT, {TTFT_TOKENS:,} new tokens"
        self.figures.add(f"{name}, no connector", "s", first[PLAIN])
        self._beside(f"{name}, more than without", first, 2.0)
        self._processor(f"{name}, CPU more than without", cpu)

    def throughput(self, rounds: int) -> None:
        """Answers a second to prompts that nobody has seen."""
        rates: dict[str, list[float]] = {arm: [] for arm in self.arms}
        cpu: dict[str, list[float]] = {arm: [] for arm in self.arms}
        for _ in range(rounds):
            for arm in self._in_turn():
                prompts = [self._prompt(BURST["tokens"]) for _ in range(BURST["requests"])]
                with spent(cpu[arm], lambda arm=arm: self._spent(arm)):
                    rates[arm].append(burst(self.arms[arm], prompts))
        name = f"answers a second, {BURST['tokens']} new tokens, {BURST['at_once']} at once"
        self.figures.add(f"{name}, no connector", "1/s", rates[PLAIN], "higher")
        took = {arm: [1 / rate for rate in each] for arm, each in rates.items()}
        self._beside(f"{name}, time more than without", took, 2.0)
        self._processor(f"{name}, CPU more than without", cpu)

    def endurance(self, rounds: int) -> None:
        """Whether many prompts make it slower or larger: the last quarter against the first."""
        took: dict[str, list[float]] = {arm: [] for arm in self.arms}
        sizes: dict[str, list[float]] = {arm: [] for arm in self.arms}
        for _ in range(rounds):
            for arm in self._in_turn():
                prompts = [self._prompt(BURST["tokens"]) for _ in range(BURST["requests"])]
                took[arm].append(1 / burst(self.arms[arm], prompts))
                sizes[arm].append(sum(map(resident_mb, self._pids[arm])))
        quarter = max(1, rounds // 4)
        first, last = slice(None, quarter), slice(-quarter, None)
        middle = statistics.median
        for arm in self.arms:
            slower = 100 * (middle(took[arm][last]) / middle(took[arm][first]) - 1)
            larger = middle(sizes[arm][last]) - middle(sizes[arm][first])
            many = f"after {rounds * BURST['requests']:,} prompts, {arm}"
            self.figures.add(f"slower {many}", "%", [slower])
            self.figures.add(f"larger {many}", "MB", [larger])

    def _beside(self, name: str, values: dict[str, list[float]], target: float | None) -> None:
        """Rows of ours against no connector, round by round, in per cent."""
        more = {
            arm: [100 * (a / b - 1) for a, b in zip(each, values[PLAIN], strict=True)]
            for arm, each in values.items()
        }
        self.figures.add(name, "%", more[OURS], target=target, example=more.get(EXAMPLE))
        if LOADS in more:
            self.figures.add(f"{name}, saving off", "%", more[LOADS])

    def _processor(self, name: str, cpu: dict[str, list[float]]) -> None:
        """The same of processor seconds, of all rounds together: single ones are too coarse."""
        more = {arm: [100 * (sum(each) / sum(cpu[PLAIN]) - 1)] for arm, each in cpu.items()}
        self.figures.add(name, "%", more[OURS], example=more.get(EXAMPLE))
        if LOADS in more:
            self.figures.add(f"{name}, saving off", "%", more[LOADS])

    def hits(self, rounds: int) -> None:
        """Time to the first token of prompts that were computed before, here or elsewhere."""
        first: dict[str, list[float]] = {
            name: [] for name in ("computed", "memory", "remote", "local", "example")
        }
        nodes: dict[str, list[float]] = {"remote": [], "local": []}
        threads: dict[str, list[float]] = {"remote": [], "local": []}
        gigabytes: dict[str, list[float]] = {"remote": [], "local": []}
        for _ in range(rounds):
            prompt = self._prompt(HIT_TOKENS)
            for way in ("computed", "memory"):
                first[way].append(ask(self.arms[PLAIN], prompt).first_s)
            wanted = self._stored() + FULL
            ask(self.arms[OURS], prompt)
            until(lambda wanted=wanted: self._stored() == wanted, "all blocks are stored", 20)
            time.sleep(0.5)  # until the other node has heard of it
            for way in ("remote", "local"):
                with (
                    spent(gigabytes[way], lambda: self._loaded(OTHER)),
                    spent(nodes[way], lambda: threads_s(list(self._nodes.values()), "")),
                    spent(threads[way], lambda: threads_s(self._pids[OTHER], "flexkv-")),
                ):
                    first[way].append(self._hit(way, prompt))
                    time.sleep(0.3)  # until counters are told and answers have been given back
                self.arms[OTHER].forget()
            ask(self.arms[EXAMPLE], prompt)
            self.arms[EXAMPLE].forget()
            first["example"].append(ask(self.arms[EXAMPLE], prompt).first_s)
        name = f"TTFT, {HIT_TOKENS:,} tokens"
        self.figures.add(f"{name}, recomputed without connector", "s", first["computed"])
        self.figures.add(f"{name}, the engine itself has them", "s", first["memory"])
        shorter = {
            way: [computed / hit for computed, hit in zip(first["computed"], each, strict=True)]
            for way, each in first.items()
        }
        for way, where in (("remote", "another node has them"), ("local", "own node has them")):
            self.figures.add(f"{name}, {where}", "s", first[way], example=first["example"])
            self.figures.add(
                f"{name}, {where}, times faster",
                "x",
                shorter[way],
                "higher",
                target=5.0,
                example=shorter["example"],
            )
            per_gb = [a / b for a, b in zip(nodes[way], gigabytes[way], strict=True)]
            self.figures.add(f"CPU of the nodes per loaded GB, {where}", "s/GB", per_gb)
            per_gb = [a / b for a, b in zip(threads[way], gigabytes[way], strict=True)]
            name_threads = f"CPU of the connector's threads per loaded GB, {where}"
            self.figures.add(name_threads, "s/GB", per_gb)

    def _hit(self, way: str, prompt: list[int]) -> float:
        """The time of a hit, having made sure that it was one."""
        before = self._hit_tokens(way)
        answer = ask(self.arms[OTHER], prompt)
        until(
            lambda: self._hit_tokens(way) - before == FULL * BLOCK,
            f"{FULL} blocks are {way} hits",
            20,
        )
        return answer.first_s

    def _stored(self) -> float:
        return self.arms[OURS].node.metrics()("flexkv_stored_blocks_total")

    def _hit_tokens(self, way: str) -> float:
        return self.arms[OTHER].metrics()(f"vllm:flexkv_hit_tokens_{way}_total")

    def _loaded(self, arm: str) -> float:
        return self.arms[arm].metrics()("vllm:flexkv_loaded_bytes_total") / 1e9


def connector(name: str, role: str, **extra: str) -> tuple[str, str]:
    """vLLM's option for a connector."""
    config = {"kv_connector": name, "kv_role": role, "kv_connector_extra_config": extra}
    return "--kv-transfer-config", json.dumps(config)


def _memory() -> str | None:
    """A file system in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Part:
    """One thing to measure."""

    measure: Callable[[Bench, int], None]
    rounds: int
    arms: frozenset[str]


PARTS = {
    "ttft": Part(Bench.misses, 15, frozenset({PLAIN, OURS, LOADS, EXAMPLE})),
    "throughput": Part(Bench.throughput, 6, frozenset({PLAIN, OURS, LOADS, EXAMPLE})),
    "endurance": Part(Bench.endurance, 20, frozenset({PLAIN, OURS})),
    "hits": Part(Bench.hits, 5, frozenset({PLAIN, OURS, OTHER, EXAMPLE})),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model", type=Path, help="made by make_model.py")
    options.add_argument("--part", choices=PARTS, action="append", help="all, if none is named")
    options.add_argument("--rounds", type=int, help="instead of each part's own number")
    options.add_argument("--json", type=Path, help="write the rows there")
    asked = options.parse_args()
    parts = [PARTS[name] for name in asked.part or PARTS]
    arms = frozenset[str]().union(*(part.arms for part in parts))
    with contextlib.ExitStack() as stack:
        bench = Bench(asked.model, arms, stack)
        load = os.getloadavg()[0]
        for part in parts:
            bench.run(part, asked.rounds)
        print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    bench.figures.show()
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in bench.figures.rows], indent=1))


if __name__ == "__main__":
    sys.exit(main())
