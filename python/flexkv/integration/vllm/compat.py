"""What differs between vLLM versions, asked of the vLLM that is installed.

Every question is about a feature, not a version number. Knows nothing of what the answers are for.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


@functools.cache
def can_answer_later() -> bool:
    """Whether `get_num_new_matched_tokens` may answer None."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    answer = str(inspect.signature(KVConnectorBase_V1.get_num_new_matched_tokens).return_annotation)
    return "None" in answer or "Optional" in answer


@functools.cache
def reports_worker_metadata() -> bool:
    """Whether workers can tell the scheduler more than which requests are done."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    return hasattr(KVConnectorBase_V1, "build_connector_worker_meta")


@functools.cache
def keeps_blocks_of_aborted_loads() -> bool:
    """Whether the scheduler itself keeps the blocks of an aborted request until it is loaded."""
    from vllm.v1.core.sched.scheduler import Scheduler

    return "delay_free_blocks" in inspect.signature(Scheduler._free_request).parameters


def recompute_failed_loads(vllm_config: Any) -> None:
    """Lets requests whose load failed be recomputed, where vLLM would let them fail.

    The scheduler reads the policy after it has made its connector.
    """
    transfer = vllm_config.kv_transfer_config
    if getattr(transfer, "kv_load_failure_policy", "recompute") != "recompute":
        transfer.kv_load_failure_policy = "recompute"


def calling_connector(impl: Any) -> Any | None:
    """The built-in connector that is making `impl`, an object whose constructor runs.

    The built-in `FlexKVConnectorV1` hands over neither the KV cache's configuration nor the
    metadata of a step, and forwards only some of its methods.
    """
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    frame = inspect.currentframe()
    while frame is not None and frame.f_locals.get("self") in (None, impl):
        frame = frame.f_back
    caller = frame.f_locals.get("self") if frame is not None else None
    return caller if isinstance(caller, KVConnectorBase_V1) else None
