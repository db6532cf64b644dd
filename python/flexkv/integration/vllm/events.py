"""KV events for routers: which blocks of a prompt the cache got, and which it no longer has.

A block is announced once its store has ended well, and announced to be removed when the node tells
so of any of its shards, when a lookup finds it missing, or when the node is gone. Knows nothing of
how blocks are stored, nor of how the node tells.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

_MEDIUM = "CPU"
_KEY_BYTES = 16
_REMEMBERED = 1 << 16
_KEPT = 1 << 12


@dataclass(slots=True)
class Offer:
    """Blocks that are being stored: the event to be, and their keys by shard."""

    event: Any
    keys: list[bytes]


class Announcer:
    """Gathers events between two calls of `take`."""

    def __init__(self, enabled: bool, tokens_per_block: int) -> None:
        self.enabled = enabled
        self._tokens_per_block = tokens_per_block
        self._announced: OrderedDict[bytes, tuple[Any, list[bytes]]] = OrderedDict()
        """By the first shard's key: the hash that others know, and the other shards' keys."""
        self._first: dict[bytes, bytes] = {}
        """The first shard's key of a block, by those of the others."""
        self._events: list[Any] = []

    def describe(self, request: Any, first: int, end: int, keys: list[bytes]) -> Offer | None:
        """The offer of blocks `first..end` of `request`, to be given to `stored` when they are.

        `keys` has, by shard, the keys of its blocks `..end`.
        """
        hashes = getattr(request, "block_hashes", None)
        if not self.enabled or not hashes or len(hashes) < end:
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
            "extra_keys": _extra_keys(BlockStored, request, range(first, end), size),
        }
        event = BlockStored(**_known(BlockStored, values))
        return Offer(event, [shard[first * _KEY_BYTES :] for shard in keys])

    def stored(self, offer: Offer | None) -> None:
        """The blocks of `offer` are in the cache."""
        if offer is None or len(self._events) >= _KEPT:
            return
        self._events.append(offer.event)
        shards = [_split(keys) for keys in offer.keys]
        for external, first, *others in zip(offer.event.block_hashes, *shards, strict=True):
            self._announced[first] = (external, others)
            self._first.update(dict.fromkeys(others, first))
        while len(self._announced) > _REMEMBERED:
            self._forget(next(iter(self._announced)))

    def missing(self, keys: bytes) -> None:
        """Blocks with these keys are not in the cache."""
        if not self._announced:
            return
        gone = [self._forget(self._first.get(key, key)) for key in _split(keys)]
        self._removed([external for external in gone if external is not None])

    def cleared(self) -> None:
        """Nothing that was announced can be found any more."""
        self._removed([external for external, _ in self._announced.values()])
        self._announced.clear()
        self._first.clear()

    def take(self) -> list[Any]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def _forget(self, key: bytes) -> Any | None:
        """The hash of the block with this key of the first shard, which counts as never announced
        from now on."""
        external, others = self._announced.pop(key, (None, []))
        for other in others:
            self._first.pop(other, None)
        return external

    def _removed(self, external: list[Any]) -> None:
        if not external or len(self._events) >= _KEPT:
            return
        from vllm.distributed.kv_events import BlockRemoved

        values = {"block_hashes": external, "medium": _MEDIUM}
        self._events.append(BlockRemoved(**_known(BlockRemoved, values)))


def _split(keys: bytes) -> list[bytes]:
    return [keys[at : at + _KEY_BYTES] for at in range(0, len(keys), _KEY_BYTES)]


def _known(event: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that this version's event has."""
    return {name: value for name, value in values.items() if name in event.__struct_fields__}


def _extra_keys(event: Any, request: Any, blocks: range, size: int) -> list[Any] | None:
    """What the hash of each block is of besides tokens, in the form of vLLM's own events. Whoever
    computes hashes from tokens would take a salted block for one that anybody can use."""
    if "extra_keys" not in event.__struct_fields__:
        return None
    from vllm.v1.core import kv_cache_utils

    keys, image = [], 0
    for block in blocks:
        ends = block * size, (block + 1) * size
        of_block, image = kv_cache_utils.generate_block_hash_extra_keys(request, *ends, image)
        keys.append(of_block)
    return getattr(kv_cache_utils, "to_event_extra_keys", list)(keys)


def _external(value: Any) -> Any:
    """The hash as vLLM gives it to others."""
    try:
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
    except ImportError:
        return getattr(value, "hash_value", value)
    return maybe_convert_block_hash(value)
