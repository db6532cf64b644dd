"""KV events for routers: which blocks of a prompt the cache got, and which it no longer has.

A block is announced once its store has ended well. The node does not tell engines what it evicts:
a removal is announced when a lookup finds a block missing that was announced before. Knows nothing
of how blocks are stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

_MEDIUM = "CPU"
_REMEMBERED = 1 << 16
_KEPT = 1 << 12


class Announcer:
    """Gathers events between two calls of `take`."""

    def __init__(self, enabled: bool, tokens_per_block: int) -> None:
        self._enabled = enabled
        self._tokens_per_block = tokens_per_block
        self._announced: OrderedDict[bytes, Any] = OrderedDict()
        self._events: list[Any] = []

    def describe(self, request: Any, first: int, end: int) -> Any | None:
        """The event for blocks `first..end` of `request`, to be given to `stored` when they are."""
        hashes = getattr(request, "block_hashes", None)
        if not self._enabled or not hashes or len(hashes) < end:
            return None
        from vllm.distributed.kv_events import BlockStored

        external = [_external(value) for value in hashes[max(first - 1, 0) : end]]
        size = self._tokens_per_block
        lora = getattr(request, "lora_request", None)
        values = {
            "block_hashes": external[1:] if first else external,
            "parent_block_hash": external[0] if first else None,
            "token_ids": list(request.all_token_ids[first * size : end * size]),
            "block_size": size,
            "lora_id": lora.lora_int_id if lora is not None else None,
            "medium": _MEDIUM,
            "lora_name": lora.lora_name if lora is not None else None,
        }
        return BlockStored(**_known(BlockStored, values))

    def stored(self, event: Any | None, keys: bytes) -> None:
        """The blocks of `event`, with these keys, are in the cache."""
        if event is None or len(self._events) >= _KEPT:
            return
        self._events.append(event)
        for index, external in enumerate(event.block_hashes):
            self._announced[keys[16 * index : 16 * index + 16]] = external
        while len(self._announced) > _REMEMBERED:
            self._announced.popitem(last=False)

    def missing(self, keys: bytes) -> None:
        """Blocks with these keys are not in the cache."""
        if not self._announced:
            return
        parts = (keys[at : at + 16] for at in range(0, len(keys), 16))
        gone = [self._announced.pop(key) for key in parts if key in self._announced]
        if gone and len(self._events) < _KEPT:
            from vllm.distributed.kv_events import BlockRemoved

            values = {"block_hashes": gone, "medium": _MEDIUM}
            self._events.append(BlockRemoved(**_known(BlockRemoved, values)))

    def cleared(self) -> None:
        """Nothing that was announced can be found any more."""
        gone, self._announced = list(self._announced.values()), OrderedDict()
        if gone:
            from vllm.distributed.kv_events import BlockRemoved

            values = {"block_hashes": gone, "medium": _MEDIUM}
            self._events.append(BlockRemoved(**_known(BlockRemoved, values)))

    def take(self) -> list[Any]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


def _known(event: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that this version's event has."""
    return {name: value for name, value in values.items() if name in event.__struct_fields__}


def _external(value: Any) -> Any:
    """The hash as vLLM gives it to others."""
    try:
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
    except ImportError:
        return getattr(value, "hash_value", value)
    return maybe_convert_block_hash(value)
