"""Doubles of the native module's classes and of what vLLM hands to a connector, for unit tests.

The node is a set of keys in memory whose answers a test can delay, shorten or break.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

BLOCK = 4
"""Tokens of a block in these tests."""


class Gone(Exception):
    """The node is gone."""


class FakeAttachment:
    """A node that has `present` blocks; tickets that were not cancelled are in `held`."""

    def __init__(self) -> None:
        self.present: set[bytes] = set()
        self.held: dict[int, list[bytes]] = {}
        self.pending = 0
        """So many polls answer that the fetch is under way."""
        self.arrives: int | None = None
        """Only so many blocks arrive by the deadline."""
        self.remote = 0
        self.told_recompute_s: list[float | None] = []
        """What each launch said that computing a block takes."""
        self.evicted: list[bytes] = []
        """What the next call of `removed` tells."""
        self.lost = 0
        self.gone = False
        self.matches = 0
        self.waited_s = 0.0
        """How long callers have waited in vain."""
        self._numbers = itertools.count(1)

    def match(self, keys: bytes) -> tuple[int, int, int]:
        self._check()
        self.matches += 1
        found = []
        for at in range(0, len(keys), 16):
            if keys[at : at + 16] not in self.present:
                break
            found.append(keys[at : at + 16])
        number = next(self._numbers)
        self.held[number] = found
        return number, len(found), len(found) - min(self.remote, len(found))

    def launch(
        self, ticket: int, blocks: int, deadline_s: float, recompute_s: float | None = None
    ) -> None:
        self._check()
        self.told_recompute_s.append(recompute_s)
        self.held[ticket] = self.held[ticket][:blocks]

    def poll(self, ticket: int) -> tuple[list[int], int, int] | None:
        self._check()
        if self.pending > 0:
            self.pending -= 1
            return None
        found = self.held[ticket]
        found = found if self.arrives is None else found[: self.arrives]
        remote = min(self.remote, len(found))
        return [4096 * index for index in range(len(found))], len(found) - remote, remote

    def wait(self, ticket: int, timeout_s: float) -> tuple[list[int], int, int] | None:
        result = self.poll(ticket)
        if result is None:
            self.waited_s += timeout_s
        return result

    def checksums(self, ticket: int) -> list[int]:
        self._check()
        return list(range(len(self.held[ticket])))

    def cancel(self, ticket: int) -> None:
        self._check()
        self.held.pop(ticket, None)

    def removed(self) -> tuple[bytes, int]:
        self._check()
        told, lost = b"".join(self.evicted), self.lost
        self.evicted, self.lost = [], 0
        return told, lost

    def _check(self) -> None:
        if self.gone:
            raise Gone("the node is gone")


class FakeLink:
    """A link whose attachment a test can take away."""

    def __init__(self, attachment: FakeAttachment | None) -> None:
        self.attachment = attachment

    def get(self) -> FakeAttachment | None:
        attachment = self.attachment
        return attachment if attachment is not None and not attachment.gone else None


class FakeChain:
    """Keys that spell out the tokens they stand for."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._tokens: list[int] = []

    def extend(self, tokens: Any) -> bytes:
        out = b""
        for token in tokens:
            self._tokens.append(token)
            if len(self._tokens) % BLOCK == 0:
                out += hash((self._root, *self._tokens)).to_bytes(16, "little", signed=True)
        return out


class FakeCopier:
    """Ends jobs when a test says so."""

    def __init__(self) -> None:
        self.jobs: dict[int, tuple[str, list[int]]] = {}
        self.ended: list[tuple[int, bool, list[int], int]] = []
        self.refuses = False
        self.shut = False

    def load(self, job: int, offsets: Any, block_ids: list[int], checksums: Any = None) -> None:
        self._take(job, "load", block_ids)

    def store(self, job: int, keys: bytes, first: int, block_ids: list[int]) -> None:
        assert len(keys) // 16 - first == len(block_ids)
        self._take(job, "store", block_ids)

    def end(self, kind: str, ok: bool = True, bad: list[int] | None = None) -> None:
        """Ends all jobs of a kind."""
        for job in [job for job, (what, _) in self.jobs.items() if what == kind]:
            _, blocks = self.jobs.pop(job)
            self.ended.append((job, ok, bad or [], 10 * len(blocks)))

    def drain(self) -> list[tuple[int, bool, list[int], int]]:
        ended, self.ended = self.ended, []
        return ended

    def pending(self) -> int:
        return len(self.jobs)

    def shutdown(self) -> None:
        self.shut = True
        self.end("load", ok=False)
        self.end("store", ok=False)

    def _take(self, job: int, kind: str, block_ids: list[int]) -> None:
        if self.refuses:
            raise Gone("the node is gone")
        self.jobs[job] = (kind, list(block_ids))


class Request:
    """What the connector reads of vLLM's request."""

    def __init__(self, name: str, tokens: list[int], **more: Any) -> None:
        self.request_id = name
        self.all_token_ids = list(tokens)
        self.num_computed_tokens = 0
        self.block_hashes = [bytes([i]) * 32 for i in range(len(tokens) // BLOCK)]
        self.status = SimpleNamespace(name="WAITING")
        self.__dict__.update(more)

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


@dataclass
class Step:
    """Builds what vLLM hands over for one step."""

    new: list[tuple[str, list[int], int]] = field(default_factory=list)
    cached: list[tuple[str, list[int] | None, int, bool]] = field(default_factory=list)
    scheduled: dict[str, int] = field(default_factory=dict)
    preempted: set[str] = field(default_factory=set)

    def output(self) -> Any:
        cached = SimpleNamespace(
            req_ids=[name for name, *_ in self.cached],
            new_block_ids=[None if ids is None else (ids,) for _, ids, _, _ in self.cached],
            num_computed_tokens=[computed for _, _, computed, _ in self.cached],
            resumed_req_ids={name for name, _, _, again in self.cached if again},
        )
        return SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(req_id=name, block_ids=(ids,), num_computed_tokens=computed)
                for name, ids, computed in self.new
            ],
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=self.scheduled,
            total_num_scheduled_tokens=sum(self.scheduled.values()),
            preempted_req_ids=self.preempted,
        )


def told(received: set[str] = frozenset(), sent: set[str] = frozenset(), invalid: Any = ()) -> Any:
    """What the workers tell after a step."""
    return SimpleNamespace(
        finished_recving=set(received), finished_sending=set(sent), invalid_block_ids=set(invalid)
    )
