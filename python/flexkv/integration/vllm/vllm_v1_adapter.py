"""What vLLM's built-in `FlexKVConnectorV1` calls: `FlexKVConnectorV1Impl(vllm_config, role)`.

Each method is guarded: an error here is a miss, never an error of vLLM. The built-in connector
forwards only some of vLLM's calls and none of a step's metadata; what it leaves out is added to
that one object (`_complete`), so that blocks cannot be overwritten while they are saved. Knows
nothing of what the two roles do.
"""

from __future__ import annotations

from typing import Any

from flexkv import config as settings
from flexkv.integration.vllm import compat
from flexkv.integration.vllm.guard import guarded, logger
from flexkv.integration.vllm.metadata import FlexKVMetadata, FlexKVWorkerMetadata
from flexkv.integration.vllm.metrics import FlexKVStats
from flexkv.integration.vllm.plan import Plan
from flexkv.integration.vllm.roles import SchedulerRole, WorkerRole

_ADDED = (
    "handle_preemptions",
    "build_connector_worker_meta",
    "get_external_cache_hit_sources",
    "reset_cache",
    "unregister_kv_caches",
)
"""Calls that the built-in connector does not forward."""


class FlexKVConnectorV1Impl:
    """One role of the connector in one process."""

    def __init__(
        self,
        vllm_config: Any,
        role: Any,
        kv_cache_config: Any | None = None,
        connector: Any | None = None,
    ) -> None:
        """`connector` is the object that vLLM calls, which its metadata is bound to."""
        self._scheduler: SchedulerRole | None = None
        self._worker: WorkerRole | None = None
        self._connector = connector
        if self._connector is None:
            self._connector = compat.calling_connector(self)
            self._complete()
        if kv_cache_config is None:
            kv_cache_config = getattr(self._connector, "_kv_cache_config", None)
        if not settings.load().enable:
            logger.warning("FlexKV: %s is 0: there is no cache", settings.SWITCH_VARIABLE)
        elif role.name == "SCHEDULER":
            self._scheduler = _scheduler_role(vllm_config, kv_cache_config)
        else:
            self._worker = WorkerRole(vllm_config, kv_cache_config)

    def _complete(self) -> None:
        """Adds the calls that the built-in connector does not forward."""
        if self._connector is None:
            logger.warning("FlexKV: not made by a connector of vLLM; it cannot save or load")
            return
        for name in _ADDED:
            if hasattr(self._connector, name):
                setattr(self._connector, name, getattr(self, name))

    # Both roles

    @guarded(lambda: None)
    def shutdown(self) -> None:
        """Gives back what this process holds."""
        for role in (self._scheduler, self._worker):
            if role is not None:
                role.close()

    @guarded(lambda: None)
    def get_kv_connector_stats(self) -> FlexKVStats | None:
        """What was counted since the last call."""
        role = self._scheduler or self._worker
        return role.side.stats() if role is not None else None

    # Worker

    @guarded(lambda: None)
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Where the KV cache is."""
        if self._worker is not None:
            self._worker.register(kv_caches)

    @guarded(lambda: None)
    def unregister_kv_caches(self) -> None:
        """The KV cache is about to go."""
        if self._worker is not None:
            self._worker.unregister()

    @guarded(lambda: None)
    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Before a step overwrites blocks."""
        if self._worker is not None and isinstance(kv_connector_metadata, FlexKVMetadata):
            self._worker.side.begin(kv_connector_metadata.plan)

    @guarded(lambda: None)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Starts loads, which end between steps."""
        plan = self._plan()
        if self._worker is not None and plan is not None:
            self._worker.side.start_loads(plan)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request computes only once all of it is loaded."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: whole blocks are saved after the step."""

    @guarded(lambda: None)
    def wait_for_save(self) -> None:
        """Starts saves, which end between steps."""
        plan = self._plan()
        if self._worker is not None and plan is not None:
            self._worker.side.start_saves(plan)

    @guarded(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose saves, and requests whose loads have ended."""
        if self._worker is None:
            return None, None
        return self._worker.side.finished(self._plan())

    @guarded(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that could not be loaded."""
        return self._worker.side.load_errors() if self._worker is not None else set()

    @guarded(lambda: None)
    def build_connector_worker_meta(self) -> FlexKVWorkerMetadata | None:
        """What became of saves."""
        report = self._worker.side.report() if self._worker is not None else None
        return FlexKVWorkerMetadata(report) if report is not None else None

    def _plan(self) -> Plan | None:
        """The plan of the step that vLLM is carrying out."""
        bound = getattr(self._connector, "_connector_metadata", None)
        return bound.plan if isinstance(bound, FlexKVMetadata) else None

    # Scheduler

    @guarded(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Tokens that are ready to be loaded; None while they are being brought."""
        if self._scheduler is None:
            return 0, False
        return self._scheduler.side.matched(request, num_computed_tokens)

    @guarded(lambda: None)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The blocks that a promise is loaded into."""
        if self._scheduler is not None:
            block_ids = blocks.get_block_ids()[0] if num_external_tokens else []
            self._scheduler.side.allocated(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> FlexKVMetadata:
        """The plan of a step."""
        return FlexKVMetadata(self._planned(scheduler_output))

    @guarded(Plan)
    def _planned(self, scheduler_output: Any) -> Plan:
        if self._scheduler is None:
            return Plan()
        return self._scheduler.stamp(self._scheduler.side.plan(scheduler_output))

    @guarded(lambda: None)
    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers tell after a step."""
        if self._scheduler is None:
            return
        told = getattr(connector_output, "kv_connector_worker_meta", None)
        if isinstance(told, FlexKVWorkerMetadata):
            self._scheduler.side.reported(told.report)
        self._scheduler.side.received(connector_output)

    @guarded(lambda: (False, None))
    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks are still being saved, and what the response shall tell."""
        if self._scheduler is None:
            return False, None
        return self._scheduler.side.finished(request)

    @guarded(list)
    def take_events(self) -> list[Any]:
        """KV events since the last call."""
        return self._scheduler.side.events() if self._scheduler is not None else []

    @guarded(dict)
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        """Tokens that were promised, by where they came from."""
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        hits = self._scheduler.side.hits(request) if self._scheduler is not None else {}
        if sum(hits.values()) != num_external_tokens:
            hits = {"local": num_external_tokens}
        named = {CacheHitSource.HOST: hits.get("local"), CacheHitSource.P2P: hits.get("remote")}
        return {source: count for source, count in named.items() if count}

    @guarded(lambda: False)
    def reset_cache(self) -> bool | None:
        """This engine finds nothing any more of what was computed so far; False if a request is
        just loading some of it."""
        return self._scheduler.reset() if self._scheduler is not None else True


def _scheduler_role(vllm_config: Any, kv_cache_config: Any | None) -> SchedulerRole | None:
    """The scheduler's role, or none where there can be no cache. Wrong settings end the start, as
    whoever wrote them is there to be told."""
    try:
        return SchedulerRole(vllm_config, kv_cache_config)
    except settings.ConfigError:
        raise
    except Exception:
        logger.exception("FlexKV: there is no cache for this engine")
        return None
