"""`FlexKVConnector`, the same as a connector of its own.

For `kv_connector_module_path="flexkv.integration.vllm.connector"`, where vLLM has no built-in one
or the built-in one should not be used. Every call goes to `FlexKVConnectorV1Impl`.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base

from flexkv.integration.vllm.metrics import FlexKVPromMetrics, FlexKVStats
from flexkv.integration.vllm.vllm_v1_adapter import FlexKVConnectorV1Impl


class FlexKVConnector(base.KVConnectorBase_V1):  # type: ignore[misc]
    """One role of the connector in one process."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any | None = None) -> None:
        if kv_cache_config is None:  # versions before there was one to hand over
            super().__init__(vllm_config, role)
        else:
            super().__init__(vllm_config, role, kv_cache_config)
        self._impl = FlexKVConnectorV1Impl(vllm_config, role, kv_cache_config, self)

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a save that is dropped is a later miss."""
        return False

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._impl.register_kv_caches(kv_caches)

    def unregister_kv_caches(self) -> None:
        self._impl.unregister_kv_caches()

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        self._impl.handle_preemptions(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._impl.start_load_kv(forward_context, **kwargs)

    def wait_for_layer_load(self, layer_name: str) -> None:
        self._impl.wait_for_layer_load(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        self._impl.save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    def wait_for_save(self) -> None:
        self._impl.wait_for_save()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self._impl.get_finished(finished_req_ids)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._impl.get_block_ids_with_load_errors()

    def build_connector_worker_meta(self) -> Any | None:
        return self._impl.build_connector_worker_meta()

    def get_kv_connector_stats(self) -> Any | None:
        return self._impl.get_kv_connector_stats()

    def shutdown(self) -> None:
        self._impl.shutdown()

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self._impl.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._impl.update_state_after_alloc(request, blocks, num_external_tokens)

    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        return self._impl.get_external_cache_hit_sources(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> base.KVConnectorMetadata:
        return self._impl.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._impl.update_connector_output(connector_output)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._impl.request_finished(request, block_ids)

    def take_events(self) -> Any:
        return self._impl.take_events()

    def reset_cache(self) -> bool | None:
        return self._impl.reset_cache()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any | None:
        return FlexKVStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> Any | None:
        return FlexKVPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
