"""What the scheduler side remembers of one request.

Knows nothing of steps, nor of when a request may load or save.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flexkv.integration.vllm.fetch import Fetch

KEY_BYTES = 16


class Keys:
    """The keys of a request's full blocks, for every shard, computed as its tokens come."""

    def __init__(self, chains: list[Any], tokens_per_block: int) -> None:
        self._chains = chains
        self._keys = [bytearray() for _ in chains]
        self._tokens_per_block = tokens_per_block

    def leading(self, blocks: int, tokens: Any) -> list[bytes]:
        """By shard: the keys of the first `blocks` blocks of `tokens`."""
        have = len(self._keys[0]) // KEY_BYTES
        if blocks > have:
            size = self._tokens_per_block
            more = list(tokens[have * size : blocks * size])
            for chain, keys in zip(self._chains, self._keys, strict=True):
                keys += chain.extend(more)
        return [bytes(keys[: blocks * KEY_BYTES]) for keys in self._keys]


@dataclass(slots=True)
class Tracked:
    """A request from its first lookup to its end."""

    request: Any
    keys: Keys | None
    """None if the request's blocks cannot be shared."""
    fetch: Fetch | None = None
    loading: bool = False
    """Workers copy blocks of `fetch`; its tickets are held until they are done."""
    load_blocks: list[int] = field(default_factory=list)
    local: int = 0
    """Blocks that the engine held itself at the last lookup."""
    may_load: bool = True
    asked_at: float = float("-inf")
    """When the last lookup found nothing of use."""
    block_ids: list[int] = field(default_factory=list)
    kept: int = 0
    """Leading blocks that need no saving: the cache has them, or was offered them."""
    open_saves: set[int] = field(default_factory=set)
    hits: dict[str, int] = field(default_factory=dict)
    saved: int = 0

    def release(self) -> None:
        """Lets go of a fetch that no worker copies from."""
        if self.fetch is not None and not self.loading:
            self.fetch.release()
            self.fetch = None


KeysOf = Callable[[Any], Keys | None]
"""Makes the keys of a request; none if its blocks cannot be shared."""
