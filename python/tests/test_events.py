"""KV events: what is announced follows what the node holds. No vLLM is needed."""

import sys
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

import pytest
from doubles import BLOCK, FakeAttachment, FakeChain, FakeLink, Request, Step

from flexkv.integration.vllm.events import Announcer
from flexkv.integration.vllm.plan import Report
from flexkv.integration.vllm.requests import Keys
from flexkv.integration.vllm.scheduler import Behaviour, SchedulerSide


@dataclass
class Stored:
    """vLLM's event, as far as we fill it in."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    medium: str


@dataclass
class Removed:
    """vLLM's event."""

    block_hashes: list[bytes] = field(default_factory=list)
    medium: str = ""


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's module of events, and none that turns hashes into others'."""
    module = ModuleType("vllm.distributed.kv_events")
    for event, name in ((Stored, "BlockStored"), (Removed, "BlockRemoved")):
        event.__struct_fields__ = tuple(each.name for each in fields(event))
        setattr(module, name, event)
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "vllm.v1.core.kv_cache_utils", None)


PROMPT = list(range(100, 118))
"""Four full blocks and two tokens."""
HASHES = [bytes([i]) * 32 for i in range(4)]


class World:
    """A scheduler side with two shards whose engine publishes events."""

    def __init__(self) -> None:
        self.node = FakeAttachment()
        self.link = FakeLink(self.node)
        how = Behaviour(BLOCK, fetch_deadline_s=5.0, workers=2)
        self.side = SchedulerSide(self.link, self.keys_of, how, Announcer(True, BLOCK))

    def keys_of(self, request: Request) -> Keys:
        return Keys([FakeChain("0"), FakeChain("1")], BLOCK)

    def key(self, shard: int, block: int) -> bytes:
        """The key of a block of the prompt."""
        keys = FakeChain(str(shard)).extend(PROMPT[: (block + 1) * BLOCK])
        return keys[-16:]

    def save(self, name: str = "a", well: int = 2) -> None:
        """Computes the prompt and stores its blocks."""
        request = Request(name, PROMPT)
        self.side.matched(request, 0)
        plan = self.side.plan(Step(new=[(name, [1, 2, 3, 4, 5], 0)], scheduled={name: 18}).output())
        (save,) = plan.saves
        self.side.reported(Report({save.job: (2, well)}))

    def removed(self) -> list[Any]:
        """The blocks of all removals that are announced now."""
        events = self.side.events()
        assert all(isinstance(event, Removed) and event.medium == "CPU" for event in events)
        return [value for event in events for value in event.block_hashes]


def test_blocks_are_announced_once_all_shards_are_stored() -> None:
    world = World()
    world.save(well=1)
    assert world.side.events() == []
    world.save("b")
    (event,) = world.side.events()
    assert event == Stored(HASHES, None, PROMPT[: 4 * BLOCK], BLOCK, "CPU")


@pytest.mark.parametrize("shards", [[0], [1], [0, 1], [1, 0]])
def test_a_block_is_gone_when_any_of_its_shards_is(shards: list[int]) -> None:
    world = World()
    world.save()
    world.side.events()
    world.node.evicted = [world.key(shard, 3) for shard in shards]
    assert world.removed() == [HASHES[3]]
    world.node.evicted = [world.key(0, 3), world.key(1, 3), b"?" * 16]
    assert world.removed() == [], "once, and nothing of blocks that others announced"


def test_a_block_that_is_stored_again_is_announced_after_its_removal() -> None:
    world = World()
    world.save()
    world.side.events()
    world.node.present = {world.key(shard, block) for shard in range(2) for block in range(3)}
    world.node.evicted = [world.key(0, 3)]
    world.save("b")
    removed, stored = world.side.events()
    assert (removed.block_hashes, stored.block_hashes) == ([HASHES[3]], [HASHES[3]])
    assert isinstance(stored, Stored)


def test_what_a_lookup_misses_is_gone_even_if_nobody_told() -> None:
    world = World()
    world.save()
    world.side.events()
    for shard in range(2):
        world.node.present |= {world.key(shard, 0), world.key(shard, 1)}
    world.side.matched(Request("b", PROMPT), 0)
    assert world.removed() == HASHES[2:]


def test_with_a_node_goes_all_it_held() -> None:
    world = World()
    world.save()
    world.side.events()
    world.node.gone = True
    assert world.removed() == HASHES
    world.link.attachment = FakeAttachment()
    assert world.removed() == []


def test_a_reset_takes_back_what_was_announced() -> None:
    world = World()
    world.save()
    world.side.events()
    assert world.side.reset()
    assert world.removed() == HASHES


def test_removals_that_were_lost_are_counted() -> None:
    world = World()
    world.side.events()
    world.node.lost = 7
    world.side.events()
    assert world.side.stats().data["lost_removals"] == 7


def test_nothing_is_asked_of_the_node_without_listeners() -> None:
    world = World()
    world.side._announcer.enabled = False
    world.node.evicted = [world.key(0, 0)]
    world.save()
    assert world.side.events() == []
    assert world.node.evicted
