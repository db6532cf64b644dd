"""Counters and gauges of the connector, in vLLM's log and at its `/metrics`.

A counter is a name in `COUNTERS`; both roles count into the same names. A gauge is one in `GAUGES`.
Versions of vLLM without connector statistics never ask for them. Knows nothing of when they change.
"""

from __future__ import annotations

from typing import Any

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
except ImportError:  # before vLLM had them
    KVConnectorPromMetrics = object
    KVConnectorStats = object

COUNTERS: dict[str, str] = {
    "lookups": "Prompts looked up in the cache.",
    "lookup_tokens": "Tokens of those prompts, beyond what the engine held itself.",
    "hit_tokens_local": "Tokens loaded from this host's node.",
    "hit_tokens_remote": "Tokens loaded from other nodes.",
    "fetch_timeouts": "Fetches that brought nothing by their deadline.",
    "unavailable": "Lookups without a node.",
    "failed_loads": "Loads that the engine had to recompute.",
    "loaded_blocks": "Blocks copied into the engine's memory, all workers.",
    "loaded_bytes": "Bytes of those.",
    "stored_bytes": "Bytes copied into the node's memory, all workers.",
    "stored_blocks": "Blocks offered to the node, those it held already included.",
    "failed_stores": "Stores that could not be completed.",
    "lost_removals": "Removals of blocks that the node could not name in time, for KV events.",
}

GAUGES: dict[str, str] = {
    "recompute_tokens_per_second": "Speed of computing prompts that the node was told last.",
}


class FlexKVStats(KVConnectorStats):  # type: ignore[misc]
    """Counters since they were last taken, and gauges that were told since."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        self.data: dict[str, Any] = dict(data or {})

    def reset(self) -> None:
        """Back to nothing."""
        self.data = {}

    def aggregate(self, other: FlexKVStats) -> FlexKVStats:
        """With the counters of another process or time."""
        for name, count in other.data.items():
            before = 0 if name in GAUGES else self.data.get(name, 0)
            self.data[name] = before + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """For the log."""
        return {name: self.data[name] for name in (*COUNTERS, *GAUGES) if self.data.get(name)}

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self.data.values())


class Counters:
    """Counts for one role in one process, from the thread of its vLLM loop."""

    def __init__(self) -> None:
        self._counts: dict[str, int | float] = {}

    def add(self, name: str, count: int = 1) -> None:
        """Counts."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count

    def tell(self, name: str, value: float) -> None:
        """Sets a gauge."""
        self._counts[name] = value

    def take(self) -> FlexKVStats | None:
        """What was counted since the last call, if anything was."""
        if not self._counts:
            return None
        counts, self._counts = self._counts, {}
        return FlexKVStats(counts)


class FlexKVPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """For Prometheus, per engine: counters `vllm:flexkv_NAME_total`, gauges `vllm:flexkv_NAME`."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, dict[int, Any]] = {}
        self._gauges: dict[str, dict[int, Any]] = {}
        for kind, texts, found in (
            (self._counter_cls, COUNTERS, self._counters),
            (self._gauge_cls, GAUGES, self._gauges),
        ):
            for name, text in texts.items():
                family = kind(
                    name=f"vllm:flexkv_{name}", documentation=text, labelnames=labelnames
                )
                found[name] = {
                    engine: family.labels(*values)
                    for engine, values in per_engine_labelvalues.items()
                }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds what an engine counted, and keeps what it told."""
        for name, count in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name][engine_idx].inc(count)
            elif name in self._gauges:
                self._gauges[name][engine_idx].set(count)
