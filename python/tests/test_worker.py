"""The worker side: every load and save ends, well or not. No vLLM is needed."""

import threading
import time
from types import SimpleNamespace

import pytest
from doubles import FakeCopier

from flexkv.integration.vllm import worker as module
from flexkv.integration.vllm.plan import Load, Plan, Save
from flexkv.integration.vllm.worker import WorkerSide


class World:
    """A worker side whose copier a test ends."""

    def __init__(self, shard: int = 0) -> None:
        self.copier: FakeCopier | None = FakeCopier()
        self.attachment = SimpleNamespace(gone=False)
        self.made = 0
        self.side = WorkerSide(self.make, shard)

    def make(self, plan: Plan) -> tuple[FakeCopier, SimpleNamespace] | None:
        self.made += 1
        return None if self.copier is None else (self.copier, self.attachment)

    def step(self, plan: Plan) -> tuple[set[str] | None, set[str] | None]:
        """One step, called as vLLM does."""
        self.side.begin(plan)
        self.side.start_loads(plan)
        self.side.start_saves(plan)
        return self.side.finished(plan)


def load(name: str = "a") -> Load:
    return Load(name, [7, 8], [[0, 4096]], [[1, 2]])


def save(name: str = "a", job: int = 1) -> Save:
    return Save(job, name, [b"k" * 48], 1, [7, 8])


def test_a_load_is_reported_once_it_has_ended() -> None:
    world = World()
    assert world.step(Plan(number=1, loads=[load()])) == (None, None)
    world.copier.end("load")
    assert world.step(Plan(number=2)) == (None, {"a"})
    assert world.step(Plan(number=3)) == (None, None)
    assert not world.side.load_errors()
    assert world.side.stats().data == {"loaded_bytes": 20, "loaded_blocks": 2}


def test_the_blocks_that_were_not_loaded_are_named_in_the_same_step() -> None:
    world = World()
    world.step(Plan(number=1, loads=[load()]))
    world.copier.end("load", ok=False, bad=[8])
    assert world.step(Plan(number=2)) == (None, {"a"})
    assert world.side.load_errors() == {8}
    assert not world.side.load_errors()


@pytest.mark.parametrize("how", ["no node", "refused"])
def test_a_load_that_cannot_start_fails_in_the_same_step(how: str) -> None:
    world = World()
    world.copier.refuses = how == "refused"
    if how == "no node":
        world.copier = None
    assert world.step(Plan(number=1, loads=[load()])) == (None, {"a"})
    assert world.side.load_errors() == {7, 8}


def test_a_plan_that_vllm_hands_over_twice_is_carried_out_once() -> None:
    world = World()
    plan = Plan(number=1, loads=[load()], saves=[save()])
    world.step(plan)
    world.step(plan)
    assert len(world.copier.jobs) == 2


def test_a_finished_request_is_reported_when_its_saves_have_ended() -> None:
    world = World()
    world.step(Plan(number=1, saves=[save(), save("b", 2)]))
    assert world.step(Plan(number=2, release=["a"])) == (None, None)
    world.copier.end("store")
    assert world.step(Plan(number=3)) == ({"a"}, None)
    assert world.step(Plan(number=4)) == (None, None)
    assert world.side.report().saves == {1: (1, 1), 2: (1, 1)}
    assert world.side.report() is None


def test_saves_without_a_node_end_at_once() -> None:
    world = World()
    world.copier = None
    assert world.step(Plan(number=1, saves=[save()], release=["a"])) == ({"a"}, None)
    assert world.side.report().saves == {1: (1, 0)}


def test_a_step_that_may_overwrite_blocks_waits_for_their_saves() -> None:
    world = World()
    world.step(Plan(number=1, saves=[save()]))
    copier = world.copier
    began = time.monotonic()
    threading.Timer(0.2, lambda: copier.end("store")).start()
    world.side.begin(Plan(number=2, flush=["a"]))
    assert time.monotonic() - began >= 0.2
    assert not copier.jobs


def test_saves_that_never_end_do_not_hang_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_S", 0.05)
    world = World()
    world.step(Plan(number=1, saves=[save()], loads=[load("b")]))
    copier = world.copier
    world.side.begin(Plan(number=2, flush=["a"]))
    assert copier.shut
    assert world.step(Plan(number=2, release=["a"])) == ({"a"}, {"b"})
    assert world.side.load_errors() == {7, 8}


def test_a_copier_is_made_again_when_its_node_is_gone() -> None:
    world = World()
    world.step(Plan(number=1, loads=[load()]))
    world.attachment.gone = True
    first, world.copier = world.copier, FakeCopier()
    world.attachment = SimpleNamespace(gone=False)
    world.side._attachment.gone = True
    assert world.step(Plan(number=2, saves=[save("b")])) == (None, {"a"})
    assert first.shut
    assert world.side.load_errors() == {7, 8}
    assert len(world.copier.jobs) == 1


def test_each_worker_takes_the_keys_and_offsets_of_its_shard() -> None:
    world = World(shard=1)
    seen: dict[str, object] = {}
    world.copier.load = lambda job, offsets, ids, sums: seen.update(load=(offsets, sums))
    world.copier.store = lambda job, keys, first, ids: seen.update(keys=keys)
    loads = [Load("a", [7], [[0], [64]], [[1], [2]])]
    saves = [Save(1, "a", [b"x" * 16, b"y" * 16], 0, [7])]
    world.step(Plan(number=1, loads=loads, saves=saves))
    assert seen == {"load": ([64], [2]), "keys": b"y" * 16}
