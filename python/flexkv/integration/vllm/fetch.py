"""One load of a prompt's prefix, for all shards at once: verified and pinned before it is promised.

Holds a ticket per shard in the node until it is released. Knows nothing of requests or of vLLM.
"""

from __future__ import annotations

import time
from typing import Any

_GRACE_S = 1.0


class Fetch:
    """Blocks being brought into the node's arena, then pinned there."""

    def __init__(
        self, attachment: Any, tickets: list[int], found: list[tuple[int, int]], deadline_s: float
    ) -> None:
        """`found` are a shard's leading blocks, and how many of them are in this host's node."""
        self._attachment = attachment
        self._tickets = tickets
        self._results: list[tuple[list[int], int, int] | None] = [None] * len(tickets)
        self._given_up = time.monotonic() + deadline_s + _GRACE_S
        self.blocks = min(blocks for blocks, _ in found)
        """Leading blocks that every shard was said to have."""
        self.here = min(self.blocks, *(here for _, here in found))
        """How many of them nobody else need be asked for."""
        self.ready_since: float | None = None

    @classmethod
    def begin(
        cls,
        attachment: Any,
        keys: list[bytes],
        wanted: int,
        deadline_s: float,
        recompute_s: float | None = None,
    ) -> Fetch:
        """Looks the prefix up for every shard. Brings it here if it has more than `wanted` blocks
        in all of them, but nothing that would take longer than `recompute_s` a block; otherwise the
        fetch holds nothing and has only told how many there are."""
        tickets: list[int] = []
        try:
            found = []
            for shard in keys:
                ticket, blocks, here = attachment.match(shard)
                tickets.append(ticket)
                found.append((blocks, here))
            fetch = cls(attachment, tickets, found, deadline_s)
            if fetch.blocks > wanted:
                for ticket in tickets:
                    attachment.launch(ticket, fetch.blocks, deadline_s, recompute_s)
            else:
                fetch.release()
        except Exception:
            _cancel(attachment, tickets)
            raise
        return fetch

    def poll(self, wait_s: float = 0.0) -> bool:
        """Whether it has ended, well or not; waits up to `wait_s` for that."""
        for index, ticket in enumerate(self._tickets):
            if self._results[index] is None:
                self._results[index] = (
                    self._attachment.wait(ticket, wait_s)
                    if wait_s > 0
                    else self._attachment.poll(ticket)
                )
        if all(result is not None for result in self._results):
            if self.ready_since is None:
                self.ready_since = time.monotonic()
            return True
        return self.timed_out()

    def timed_out(self) -> bool:
        """Whether it brought nothing by its deadline; an answering node always tells by then."""
        return self.ready_since is None and time.monotonic() > self._given_up

    def remaining_s(self) -> float:
        """How long it may still take."""
        return max(0.0, self._given_up - time.monotonic())

    def verified(self) -> int:
        """Leading blocks that every shard has here, verified and pinned."""
        if not self._tickets or any(result is None for result in self._results):
            return 0
        return min(len(result[0]) for result in self._results if result is not None)

    def remote(self) -> int:
        """How many of the blocks came from other nodes, for the shard with most of them."""
        return max((result[2] for result in self._results if result is not None), default=0)

    def offsets(self, first: int, count: int) -> list[list[int]]:
        """By shard: where blocks `first..first + count` are in the arena."""
        return [result[0][first : first + count] for result in self._results if result is not None]

    def checksums(self, first: int, count: int) -> list[list[int]]:
        """By shard: the checksums of the same blocks."""
        sums = (self._attachment.checksums(ticket) for ticket in self._tickets)
        return [shard[first : first + count] for shard in sums]

    def release(self) -> None:
        """Gives back what the tickets hold."""
        tickets, self._tickets = self._tickets, []
        _cancel(self._attachment, tickets)


def _cancel(attachment: Any, tickets: list[int]) -> None:
    for ticket in tickets:
        try:
            attachment.cancel(ticket)
        except Exception:  # a node that is gone holds nothing
            return
